"""The figures as one screen of text, 80 columns wide or more; plain when piped."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reinforce.formatting import format_seconds
from reinforce.inspection.corpus_words import corpus_lines
from reinforce.inspection.figures import CostFigures, Distribution, Figures, RunFigures
from reinforce.inspection.words import (
    bank_line,
    complete_line,
    count,
    facts,
    format_bytes,
    label,
    modality_line,
    percent,
    printable,
    run_counts,
    sampled_line,
    samples_line,
    size_line,
)

_MOST_PROBLEMS = 10
_MOST_RUNS = 3
_MOST_TEXTS = 2
_MOST_NAMES = 2
_LEAST_SHARE = 0.02
"""Of all busy seconds, for a stage to be shown."""

Lines = list[tuple[str, str]]
"""Of a name and words."""


def render_table(figures: Figures) -> RenderableType:
    """Everything there is to say, the problems first."""
    parts: list[RenderableType] = [_head(figures)]
    if figures.problems:
        parts.append(_problems(figures))
    if figures.doubts:
        parts.append(_doubts(figures))
    if figures.num_shards or figures.signals:
        parts.append(_signals(figures))
    parts += [_lines(facts(figures))] if facts(figures) else []
    parts += [_cosines(figures)] if figures.cosines or figures.drifts else []
    parts += [_captions(figures)] if figures.captions else []
    lines = [("modality", modality_line(figures, signal)) for signal in figures.signals if signal.reading]
    lines += [("bank", f"{printable(bank.name)}: {bank_line(bank)}") for bank in figures.banks]
    lines += [("corpus", words) for corpus in figures.corpora for words in corpus_lines(corpus)]
    lines += _frequent(figures) + _alike(figures) + _cost(figures)
    parts += [_lines(lines)] if lines else []
    return Group(*(line for part in parts for line in (part, "")[: 1 if part is parts[-1] else 2]))


def _head(figures: Figures) -> Text:
    lines = [samples_line(figures), complete_line(figures), size_line(figures), sampled_line(figures)]
    if not figures.num_shards:
        lines = ["no shards yet: samples/ is empty"]
    return (
        Text("reinforced dataset ", overflow="fold").append(figures.uri, style="bold").append("\n" + "\n".join(lines))
    )


def _problems(figures: Figures) -> RenderableType:
    lines = Text(f"{len(figures.problems):,} PROBLEMS" if len(figures.problems) > 1 else "1 PROBLEM", style="bold red")
    for problem in figures.problems[:_MOST_PROBLEMS]:
        lines.append(f"\n{printable(problem.path, 200)}", style="not bold red")
        lines.append(f": {printable(problem.what, 300)}", style="not bold default")
    if len(figures.problems) > _MOST_PROBLEMS:
        lines.append(f"\nand {len(figures.problems) - _MOST_PROBLEMS:,} more, see --json", style="not bold default")
    return lines


def _doubts(figures: Figures) -> RenderableType:
    lines = Text("LOOKS WRONG", style="bold yellow")
    for doubt in figures.doubts:
        lines.append(f"\n{printable(doubt, 300)}", style="not bold default")
    return lines


def _signals(figures: Figures) -> Table:
    table = _table("signal", "shards", "missing", "cols", "bytes", "a sample", "|norm-1|")
    per_sample = figures.spine_bytes / figures.num_kept if figures.num_kept else None
    spine_missing = figures.missing_shards.count if figures.missing_shards else None
    _row(table, "samples", figures.num_shards, _number(spine_missing), "", *_bytes(figures.spine_bytes, per_sample), "")
    for signal in figures.signals:
        norm = "" if signal.max_norm_error is None else f"{signal.max_norm_error:.1e}"
        size = _bytes(signal.num_bytes, signal.bytes_per_kept)
        missing = _number(signal.missing.count)
        _row(table, label(signal.folder), f"{signal.num_files:,}", missing, signal.num_columns, *size, norm)
    return table


def _cosines(figures: Figures) -> Table:
    table = _table("cosine to the clean image", "mean", "5 %", "50 %", "95 %", "mismatched")
    for cosine in figures.cosines:
        name = f"{cosine.teacher}: {cosine.source} captions"
        _row(table, name, *_quantiles(cosine.matched), _cosine(cosine.mismatched_mean))
    for drift in figures.drifts:
        means = [mean for mean in drift.by_view if mean is not None]
        spread = f", means {min(means):.3f}-{max(means):.3f}" if len(means) > 1 else ""
        name = f"{drift.teacher}: {count(drift.num_views, 'view')}{spread}"
        _row(table, name, *_quantiles(drift.cosine), _cosine(drift.mismatched_mean))
    return table


def _alike(figures: Figures) -> Lines:
    """Which images are alike, by one teacher and by two."""
    lines = []
    for found in figures.agreements:
        share = f"{percent(found.overlap)} of the {found.num_neighbours} nearest (chance {percent(found.chance)}"
        lines.append(("agreement", f"{', '.join(found.teachers)}: {share}; {count(found.num_images, 'image')})"))
    for duplicate in figures.duplicates:
        some = "images" if duplicate.is_full else "sampled images"
        share = f"{duplicate.num_images:,} {some} ({percent(duplicate.num_duplicates / duplicate.num_images)})"
        how = f"{duplicate.teacher}: cosine {duplicate.threshold:g} or more"
        words = f"{duplicate.num_duplicates:,} of {share} repeat another by {how}"
        if duplicate.groups:
            names = [printable(f"{name.stem}/{name.key}", 40) for name in duplicate.groups[0]]
            more = ", ..." * (len(names) > _MOST_NAMES)
            words += f"; {count(duplicate.num_groups, 'group')}, largest {', '.join(names[:_MOST_NAMES])}{more}"
        lines.append(("duplicates", words))
    return lines


def _captions(figures: Figures) -> Table:
    table = _table(
        "captions", "a sample", "samples\nwithout", "words\nmin/mid/max", "distinct", "copies of\nan original"
    )
    for source in figures.captions:
        words = f"{source.words_min}/{source.words_median:g}/{source.words_max}"
        without = source.num_samples_without
        distinct = percent(source.distinct_ratio)
        copies = "" if source is figures.captions[0] else percent(source.num_copies / max(source.num_captions, 1))
        _row(table, source.source, f"{source.captions_per_sample:.2f}", without, words, distinct, copies)
    return table


def _frequent(figures: Figures) -> Lines:
    lines = []
    for source in figures.captions:
        top = [f"{printable(text, 30)} x {number:,}" for text, number in source.most_frequent if number > 1]
        if top:
            lines.append(("frequent", f"{source.source}: {'; '.join(top[:_MOST_TEXTS])}"))
        if source.num_empty:
            lines.append(("empty", f"{source.source}: {count(source.num_empty, 'caption')} without a word"))
    return lines


def _cost(figures: Figures) -> Lines:
    cost = figures.cost
    if cost is None:
        return []
    runs = sorted(figures.runs, key=lambda run: run.start)
    lines = [("runs", _run(run)) for run in runs[-_MOST_RUNS:]]
    if len(runs) > _MOST_RUNS:
        lines.insert(0, ("runs", f"{count(len(runs), 'run')}, {_seconds(cost.elapsed_s)} in all; the last ones:"))
    return [*lines, *(("busy", words) for words in _busy(cost))]


def _busy(cost: CostFigures) -> Iterator[str]:
    """The longer stages of all runs; what a thousand took in those runs that can tell."""
    least = _LEAST_SHARE * sum(cost.stages.values())
    stages = sorted((stage for stage in cost.stages if cost.stages[stage] > least), key=lambda s: -cost.stages[s])
    each = cost.stages_per_1000
    words = ", ".join(f"{s} {_seconds(cost.stages[s])}" + (f" ({each[s]:.3g})" if s in each else "") for s in stages)
    if words:
        alone = ", of runs without sentences" if cost.num_sentences else ""
        yield words + (f"; in brackets seconds for 1,000 samples{alone}" if each else "")
    each = cost.stages_per_1000_sentences
    if words := ", ".join(f"{s} {_seconds(each[s])}" for s in stages if s in each):
        yield f"for 1,000 sentences, of runs without images: {words}"


def _run(run: RunFigures) -> str:
    what = f"{run_counts(run)}, {count(run.num_shards, 'shard')}"
    failed = f", {run.num_failed:,} failed" if run.num_failed else ""
    where = f" ({run.hardware})" if run.hardware else ""
    ended = "" if run.end else ", no end"
    start = printable(run.start[:16].replace("T", " "))
    return f"{start}, {_seconds(run.elapsed_s)}: {what}{failed}, {count(run.num_workers, 'worker')}{where}{ended}"


def _seconds(spent: float) -> str:
    return f"{spent:.2g} s" if spent < 9.95 else format_seconds(spent)


def _lines(lines: Lines) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    names = [name for name, _ in lines]
    for index, (name, words) in enumerate(lines):
        _row(table, name if index == 0 or names[index - 1] != name else "", words)
    return table


def _table(*headers: str, left: Sequence[int] = (0,)) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        if index in left:
            table.add_column(header, overflow="fold")
        else:
            table.add_column(header, justify="right", no_wrap=True)
    return table


def _row(table: Table, *cells: object) -> None:
    """Cells as they are: a caption with brackets in it is not markup."""
    table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in cells))


def _quantiles(found: Distribution) -> tuple[str, ...]:
    return tuple(f"{value:.3f}" for value in (found.mean, found.q05, found.median, found.q95))


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bytes(total: int, per_sample: float | None) -> tuple[str, str]:
    return format_bytes(total), "" if per_sample is None else format_bytes(per_sample)


def _number(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
