"""What looks wrong in figures that no single file is to blame for. Few rules: `docs/inspecting.md` argues each.

A good dataset may break one: they are words for a person, no verdict.
"""

from collections.abc import Iterator, Mapping

from reinforce.inspection.corpus_figures import CorpusFigures, SentenceTeacherFigures
from reinforce.inspection.figures import CaptionFigures, CosineFigures, Figures, SignalFigures
from reinforce.inspection.values import ORIGINAL
from reinforce.inspection.words import percent

_FEWEST_CAPTIONS = 200
"""Below which a share of distinct captions says little."""
_LEAST_DISTINCT = 0.05
_MOST_COPIES = 0.5
_MOST_TRUNCATED = 0.1
_LEAST_TIMES_CHANCE = 2
_MOST_CHANCE = 0.1
"""Below some 200 images chance is so high that it proves nothing."""
_LEAST_DEVIATIONS = 0.1
"""With normal cosines, a right caption then beats a wrong one 53 times in 100."""
_SPREAD = 3.29
"""Standard deviations from the 5 % to the 95 % quantile of a normal distribution."""
_SLACK = 1e-4
"""Of a norm, beside what rounding may do to it."""


def find_doubts(figures: Figures, mantissa_bits: Mapping[str, int]) -> Iterator[str]:
    """In words, worst first. `mantissa_bits` are those of each signal folder."""
    for signal in figures.signals:
        yield from _of_signal(signal, mantissa_bits.get(signal.folder))
    for source in figures.captions:
        unfit = [c.teacher for c in figures.cosines if c.source == source.source and not _is_fit(c)]
        if unfit:
            yield f"{source.source} captions fit their images hardly better than others do: {', '.join(unfit)}"
    for drift in figures.drifts:
        chance = drift.mismatched_mean
        lost = [n for n, mean in enumerate(drift.by_view, 1) if None not in (mean, chance) and mean <= chance]  # type: ignore[operator]
        if lost:
            views = "view" if len(lost) == 1 else "views"
            numbers = ", ".join(map(str, lost[:5])) + ", ..." * (len(lost) > 5)
            yield f"{drift.teacher}: {views} {numbers}: no nearer to the clean view than another image is"
    for agreement in figures.agreements:
        if agreement.overlap <= _LEAST_TIMES_CHANCE * agreement.chance < _MOST_CHANCE:
            yield f"{' and '.join(agreement.teachers)} agree on neighbours hardly more than chance"
    for source in figures.captions:
        yield from _of_captions(source)
    for corpus in figures.corpora:
        for teacher in corpus.teachers:
            yield from _of_sentences(corpus, teacher)


def _is_fit(cosine: CosineFigures) -> bool:
    """Whether captions are nearer to their images than to others, by more than a fraction of how far cosines spread."""
    chance, matched = cosine.mismatched_mean, cosine.matched
    return chance is None or matched.mean - chance >= _LEAST_DEVIATIONS * (matched.q95 - matched.q05) / _SPREAD


def _of_signal(signal: SignalFigures, mantissa_bits: int | None) -> Iterator[str]:
    error, name = signal.max_norm_error, signal.folder.removeprefix("embeddings/")
    if error is not None and mantissa_bits is not None and error > 2.0 ** -(mantissa_bits + 1) + _SLACK:
        yield f"{name}: a norm is off by {error:.1e}, more than {mantissa_bits} mantissa bits explain"
    if signal.num_truncated_texts > _MOST_TRUNCATED * max(signal.num_values, 1):
        share = signal.num_truncated_texts / max(signal.num_values, 1)
        yield f"{name}: {percent(share)} of the texts are longer than the context and cut"


def _of_sentences(corpus: CorpusFigures, teacher: SentenceTeacherFigures) -> Iterator[str]:
    error, bits, name = teacher.max_norm_error, teacher.mantissa_bits, f"corpora/{corpus.name} by {teacher.name}"
    if error is not None and bits is not None and error > 2.0 ** -(bits + 1) + _SLACK:
        yield f"{name}: a norm is off by {error:.1e}, more than {bits} mantissa bits explain"
    if teacher.num_truncated_texts > _MOST_TRUNCATED * max(corpus.num_kept, 1):
        share = teacher.num_truncated_texts / max(corpus.num_kept, 1)
        yield f"{name}: {percent(share)} of the sentences are longer than the context and cut"


def _of_captions(source: CaptionFigures) -> Iterator[str]:
    if source.source == ORIGINAL or source.num_captions < _FEWEST_CAPTIONS:
        return
    if source.distinct_ratio < _LEAST_DISTINCT:
        yield f"{source.source}: only {percent(source.distinct_ratio)} of its captions are distinct"
    if source.num_copies > _MOST_COPIES * source.num_captions:
        share = source.num_copies / source.num_captions
        yield f"{source.source}: {percent(share)} of its captions are an original of the same sample"
