"""What deserves a second look, in sentences: what failed, is missing or was lost, and the doubts that figures raise."""

from collections.abc import Iterator

from reinforce.inspection.corpus_figures import CorpusFigures
from reinforce.inspection.figures import Figures
from reinforce.inspection.words import count
from reinforce.sample import DropReason, NullReason

_MOST_FAILURES = 5
_LARGE_SHARE = 0.05


def remarks(figures: Figures) -> list[str]:
    """The most serious first; none if all is as one would wish."""
    return [*_absences(figures), *figures.doubts, *_losses(figures)]


def _absences(figures: Figures) -> Iterator[str]:
    failures = list(figures.failures.items())
    for stem, error in failures[:_MOST_FAILURES]:
        yield f"Shard {stem} failed: {error}"
    num_more = max(figures.num_failures, len(failures)) - _MOST_FAILURES
    if num_more > 0:
        yield f"{count(num_more, 'more shard')} failed"
    if figures.missing_shards and figures.missing_shards.count:
        yield f"{count(figures.missing_shards.count, 'source shard')} not built: no samples/ for them"
    missing = [signal for signal in figures.signals if signal.missing.count]
    if missing:
        most = max(signal.missing.count for signal in missing)
        lacking = f"{count(len(missing), 'signal')} incomplete, by up to {count(most, 'shard')}"
        yield f"{lacking}: a build is running, or was cut short"
    for corpus in figures.corpora:
        most = max((teacher.missing.count for teacher in corpus.teachers), default=0)
        if most or not corpus.teachers:
            lacks = f"lacks embeddings of {count(most or corpus.num_files, 'file')}"
            yield f"Corpus {corpus.name} {lacks}: a build is running, or was cut short"


def _losses(figures: Figures) -> Iterator[str]:
    for signal in figures.signals:
        if number := signal.nulls.get(NullReason.NON_FINITE, 0):
            yield f"{signal.folder}: {count(number, 'value')} not finite, stored as null"
    lost = sum(drop.count for drop in figures.drops if drop.reason != DropReason.NOT_SELECTED)
    if lost > _LARGE_SHARE * figures.num_samples:
        yield f"{lost:,} of {count(figures.num_samples, 'sample')} could not be used"
    for corpus in figures.corpora:
        yield from _losses_of_corpus(corpus)


def _losses_of_corpus(corpus: CorpusFigures) -> Iterator[str]:
    drops = [drop for drop in corpus.drops if drop.reason != DropReason.NOT_SELECTED]
    lost = sum(drop.count for drop in drops)
    if lost > _LARGE_SHARE * corpus.num_sentences:
        reasons = ", ".join(f"{drop.count:,} {drop.reason}" for drop in drops)
        yield f"Corpus {corpus.name}: {lost:,} of {count(corpus.num_sentences, 'sentence')} dropped: {reasons}"
    if corpus.num_cut > _LARGE_SHARE * corpus.num_sentences:
        yield f"Corpus {corpus.name}: {count(corpus.num_cut, 'sentence')} cut, too long for the recipe"
    for teacher in corpus.teachers:
        if number := teacher.nulls.get(NullReason.NON_FINITE, 0):
            yield f"Corpus {corpus.name} by {teacher.name}: {count(number, 'value')} not finite, stored as null"
