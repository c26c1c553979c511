"""The figures of an inspection as charts: which bars, histograms and dots the page shows."""

import math
from collections.abc import Iterable, Sequence

from reinforce.formatting import format_seconds
from reinforce.inspection.corpus_figures import CorpusFigures
from reinforce.inspection.corpus_words import teacher_words
from reinforce.inspection.figures import (
    AgreementFigures,
    CosineFigures,
    Distribution,
    DriftFigures,
    DuplicateFigures,
    Figures,
    RunFigures,
    SampleName,
)
from reinforce.inspection.plots import (
    Bar,
    Dots,
    Histogram,
    Mark,
    Scale,
    columns_of_integers,
    histogram,
    number_words,
    round_ticks,
)
from reinforce.inspection.words import count, format_bytes, label, run_counts
from reinforce.sample import DropReason


def completeness(figures: Figures) -> list[Bar]:
    """Shards that have each signal; the spine against the source if that is known."""
    most = figures.num_shards + (figures.missing_shards.count if figures.missing_shards else 0)
    missing = figures.missing_shards
    examples = _and_more(missing.examples, missing.count) if missing and missing.count else ""
    bars = [_present("samples", figures.num_shards, most, f"missing {examples}" if examples else "")]
    for signal in figures.signals:
        note = f"missing {_and_more(signal.missing.examples, signal.missing.count)}" if signal.missing.count else ""
        bars.append(_present(signal.folder, signal.num_files, most, note))
    return bars


def sizes(figures: Figures) -> list[Bar]:
    """Bytes of each signal, on the scale of the largest, and of one kept sample."""
    per_sample = figures.spine_bytes / figures.num_kept if figures.num_kept else None
    found = [("samples", figures.spine_bytes, per_sample)]
    found += [(signal.folder, signal.num_bytes, signal.bytes_per_kept) for signal in figures.signals]
    most = max(num_bytes for _, num_bytes, _ in found) or 1
    return [
        Bar(
            name,
            format_bytes(num_bytes) + ("" if per is None else f", {format_bytes(per)} each"),
            100 * num_bytes / most,
        )
        for name, num_bytes, per in found
    ]


def drops(figures: Figures) -> list[Bar]:
    """Dropped samples by reason, on the scale of the most frequent one."""
    most = max((drop.count for drop in figures.drops), default=1)
    bars = []
    for drop in figures.drops:
        share = 100 * drop.count / most
        is_loss = drop.reason != DropReason.NOT_SELECTED
        names = _and_more([f"{example.stem}/{example.key}" for example in drop.examples], drop.count)
        value = f"{drop.count:,} = {_percent(drop.count, figures.num_samples)}"
        bars.append(Bar(drop.reason, value, 0 if is_loss else share, share if is_loss else 0, note=names))
    return bars


def nulls(figures: Figures) -> list[Bar]:
    """Values that do not exist, as a share of the cells of their signal."""
    bars = []
    for signal in figures.signals:
        num_columns = 1 if signal.folder.startswith("modalities/") else signal.num_columns
        num_cells = max(figures.num_kept * max(1, num_columns), 1)
        for reason, number in signal.nulls.items():
            names = figures.null_examples.get(signal.folder, {}).get(reason, ())
            share = 100 * number / num_cells
            value = f"{number:,} = {_percent(number, num_cells)}"
            note = _and_more(_sample_names(names), number)
            bars.append(Bar(f"{reason} in {label(signal.folder)}", value, bad=min(share, 100), note=note))
        if signal.num_truncated_texts:
            share = 100 * signal.num_truncated_texts / num_cells
            value = f"{signal.num_truncated_texts:,} = {_percent(signal.num_truncated_texts, num_cells)}"
            bars.append(Bar(f"longer than the context of {label(signal.folder)}", value, bad=min(share, 100)))
    return bars


def sentence_drops(corpus: CorpusFigures) -> list[Bar]:
    """What became of a corpus's sentences, as shares of them."""
    most = max(corpus.num_sentences, 1)
    value = f"{corpus.num_kept:,} = {_percent(corpus.num_kept, most)}"
    bars = [Bar("kept", value, 100 * corpus.num_kept / most)]
    for drop in corpus.drops:
        names = _and_more([f"{example.stem}/{example.key}" for example in drop.examples], drop.count)
        share, is_loss = 100 * drop.count / most, drop.reason != DropReason.NOT_SELECTED
        value = f"{drop.count:,} = {_percent(drop.count, most)}"
        bars.append(Bar(drop.reason, value, 0 if is_loss else share, share if is_loss else 0, note=names))
    return bars


def sentence_teachers(corpus: CorpusFigures) -> list[Bar]:
    """Files that each teacher has embedded, and how many sentences it cut."""
    bars = []
    for teacher in corpus.teachers:
        good = 100 * teacher.num_files / max(corpus.num_files, 1)
        bars.append(Bar(teacher.name, teacher_words(corpus, teacher), good, 100 - good))
    return bars


def lengths(words: Distribution | None) -> Histogram | None:
    """Words a text; nothing to draw if all have as many."""
    if words is None or words.low == words.high:
        return None
    high = words.high + 1  # a column of n words covers n to n + 1
    columns = columns_of_integers(words)
    scale = Scale(words.low, high)
    most = max(height for _, _, height in columns)
    drawn = tuple((scale.percent(low), scale.span(width), 100 * height / most) for low, width, height in columns)
    ticks = tuple(
        Mark(scale.percent(tick + 0.5), f"{tick:g}") for tick in round_ticks(words.low, words.high) if tick == int(tick)
    )
    return Histogram(drawn, ticks, Mark(scale.percent(words.median + 0.5), f"median {words.median:g}"))


def scores(cosines: Sequence[CosineFigures]) -> list[tuple[CosineFigures, Histogram]]:
    """The cosines of one teacher, on one scale."""
    ends = [end for cosine in cosines for end in (cosine.matched.low, cosine.matched.high)]
    ends += [cosine.mismatched_mean for cosine in cosines if cosine.mismatched_mean is not None]
    scale = Scale.around(ends)
    found = []
    for cosine in cosines:
        chance = cosine.mismatched_mean
        other = None if chance is None else Mark(scale.percent(chance), f"mismatched {number_words(chance)}")
        found.append((cosine, histogram(cosine.matched, scale, other)))
    return found


def drift(figures: DriftFigures) -> Histogram:
    """Cosines of the augmented views to the clean one, beside those of any two images."""
    chance = figures.mismatched_mean
    scale = Scale.around([figures.cosine.low, 1.0, *([] if chance is None else [chance])])
    other = None if chance is None else Mark(scale.percent(chance), f"another image {number_words(chance)}")
    return histogram(figures.cosine, scale, other)


def drift_by_view(figures: DriftFigures) -> Dots | None:
    """The mean of each view: views are drawn alike, so that they should lie level."""
    known = [(view, mean) for view, mean in enumerate(figures.by_view, 1) if mean is not None]
    if len(known) < 2:
        return None
    scale = Scale(math.floor(10 * min(mean for _, mean in known) - 0.5) / 10, 1.0)
    step = 100 / len(figures.by_view)
    dots = tuple(
        (step * (view - 0.5), 100 - scale.percent(mean), f"view {view}: {number_words(mean)}") for view, mean in known
    )
    levels = tuple(
        Mark(100 - scale.percent(level), number_words(level, 1)) for level in round_ticks(scale.low, scale.high, 4)
    )
    ends = (known[0][0], known[-1][0])
    return Dots(dots, levels, tuple(Mark(step * (view - 0.5), f"view {view}") for view in ends))


def agreement(agreements: Sequence[AgreementFigures]) -> list[Bar]:
    """Shares of nearest neighbours that two teachers have in common; the tick is chance."""
    return [
        Bar(
            " and ".join(found.teachers),
            f"{100 * found.overlap:.0f} %",
            100 * found.overlap,
            tick=100 * found.chance,
            note=f"chance {100 * found.chance:.2g} %; {found.num_neighbours} nearest of {found.num_images:,} images",
        )
        for found in agreements
    ]


def duplicates(found: Sequence[DuplicateFigures]) -> list[Bar]:
    """Images that would go if one of each group of near-duplicates stayed."""
    return [
        Bar(
            figures.teacher,
            f"{figures.num_duplicates:,} = {_percent(figures.num_duplicates, figures.num_images)}",
            bad=100 * figures.num_duplicates / max(figures.num_images, 1),
            note=f"in {count(figures.num_groups, 'group')}, cosine ≥ {figures.threshold:g}, "
            f"{'all' if figures.is_full else 'a sample of'} {count(figures.num_images, 'image')}",
        )
        for figures in found
    ]


def stages(run: RunFigures) -> list[Bar]:
    """Busy time of each stage, the longest first."""
    total = sum(run.stages.values()) or 1
    found = sorted(run.stages.items(), key=lambda item: (-item[1], item[0]))
    most = max((seconds for _, seconds in found), default=1) or 1
    return [
        Bar(name, f"{seconds_words(seconds)} = {100 * seconds / total:.0f} %", 100 * seconds / most)
        for name, seconds in found
    ]


def run_words(run: RunFigures) -> str:
    """When, by whom, how much and how fast."""
    words = f"{run.start}: {run_counts(run)} in {seconds_words(run.elapsed_s)}"
    words += f" by {count(run.num_workers, 'worker')}" if run.num_workers else ""
    # Of a run that went through both, neither rate would say anything.
    number = 0 if run.num_samples and run.num_sentences else run.num_samples + run.num_sentences
    words += f", {number / run.elapsed_s:,.3g} a second" if run.elapsed_s and number else ""
    words += f"; {count(run.num_failed, 'shard')} failed" if run.num_failed else ""
    words += "" if run.end else "; still running, or cut short"
    return f"{words}. {run.hardware}".rstrip()


def seconds_words(seconds: float) -> str:
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 59.95 else format_seconds(seconds)


def _present(name: str, number: int, most: int, note: str) -> Bar:
    good = 100 * number / max(most, 1)
    value = f"all {count(number, 'shard')}" if number == most else f"{number:,} of {count(most, 'shard')}"
    return Bar(name, value, good, 100 - good if most else 0, note=note)


def _percent(number: int, total: int) -> str:
    share = 100 * number / max(total, 1)
    if number == 0:
        return "0 %"
    return f"{share:.0f} %" if share >= 9.95 else f"{share:.2g} %" if share >= 0.001 else "< 0.001 %"


def _sample_names(names: Iterable[SampleName]) -> list[str]:
    return [f"{name.stem}/{name.key}" for name in names]


def _and_more(names: Sequence[str], total: int) -> str:
    return f"{', '.join(names)}{', …' if total > len(names) else ''}" if names else ""
