"""Corpora in words, a line each: for the screen and the dataset card.

Names of files and what documents say are of unknown origin: `quote` makes them fit for where they are shown.
"""

from collections.abc import Callable, Iterator

from reinforce.inspection.corpus_figures import CorpusFigures, SentenceTeacherFigures
from reinforce.inspection.words import count, format_bytes, percent, printable

Quote = Callable[[str], str]


def corpus_line(corpus: CorpusFigures, quote: Quote = printable) -> str:
    """How many sentences of how many files, and how they were read."""
    tilde = "~" * corpus.is_estimated
    counts = f"{count(corpus.num_files, 'file')}, {tilde}{count(corpus.num_sentences, 'sentence')}"
    counts += f", {tilde}{corpus.num_kept:,} kept"
    source = f" beside {tilde}{format_bytes(corpus.source_bytes)} of source" if corpus.source_bytes else ""
    reading = f"field {quote(corpus.column)}, {corpus.reading}"
    return f"{quote(corpus.name)}: {counts}; {format_bytes(corpus.num_bytes)}{source}; {reading}"


def losses_line(corpus: CorpusFigures, quote: Quote = printable) -> str:
    """What was dropped, by reason, and cut; empty if nothing was."""
    tilde = "~" * corpus.is_estimated
    losses = []
    for drop in corpus.drops:
        names = ", ".join(quote(_short(example.stem, example.key)) for example in drop.examples)
        losses.append(f"{tilde}{drop.count:,} {printable(drop.reason)}" + (f" ({names})" if names else ""))
    losses = [f"dropped {', '.join(losses)}"] if losses else []
    losses += [f"{tilde}{corpus.num_cut:,} cut by the recipe"] if corpus.num_cut else []
    return "; ".join(losses)


def teacher_words(corpus: CorpusFigures, teacher: SentenceTeacherFigures, quote: Quote = printable) -> str:
    """What a teacher has of a corpus, and what it lacks."""
    tilde = "~" * corpus.is_estimated
    words = [f"{count(teacher.num_files, 'file')}, {format_bytes(teacher.num_bytes)}"]
    if teacher.missing.count:
        names = ", ".join(quote(_short(stem)) for stem in teacher.missing.examples)
        words.append(f"lacks {count(teacher.missing.count, 'file')} ({names})")
    words += [f"{tilde}{number:,} {printable(reason)}" for reason, number in teacher.nulls.items()]
    if teacher.num_truncated_texts:
        share = percent(teacher.num_truncated_texts / max(corpus.num_kept, 1))
        words.append(f"{tilde}{teacher.num_truncated_texts:,} ({share}) longer than its context")
    return "; ".join(words)


def corpus_lines(corpus: CorpusFigures) -> Iterator[str]:
    """Everything there is to say of a corpus."""
    yield corpus_line(corpus)
    losses = losses_line(corpus)
    yield from [losses] if losses else []
    for teacher in corpus.teachers:
        yield f"by {printable(teacher.name)}: {teacher_words(corpus, teacher)}"


def _short(*parts: str) -> str:
    """A file of sentences, or a record of one, below its corpus, whose name is known; cut if it is long."""
    return printable("/".join(parts).split("/", 2)[-1], 40)
