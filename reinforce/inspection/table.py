"""The figures as one screen of text, 80 columns wide or more; plain when piped."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reinforce.inspection.figures import Distribution, Figures, Missing

_MOST_PROBLEMS = 10
_MOST_CHARACTERS = 60


def render_table(figures: Figures) -> RenderableType:
    """Everything there is to say, the problems first."""
    parts: list[RenderableType] = [_head(figures)]
    if figures.problems:
        parts.append(_problems(figures))
    if figures.num_shards or figures.signals:
        parts.append(_signals(figures))
    parts += [_lines(figures)] if facts(figures) else []
    parts += [_captions(figures)] if figures.captions else []
    parts += [_cosines(figures)] if figures.cosines or figures.drifts else []
    return Group(*(line for part in parts for line in (part, "")[: 1 if part is parts[-1] else 2]))


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def printable(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Text of unknown origin on one line, without control characters, cut at `most` characters."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _head(figures: Figures) -> Text:
    lines = [
        f"{count(figures.num_shards, 'shard')}, {count(figures.num_samples, 'sample')}, {figures.num_kept:,} kept, "
        f"{figures.num_samples - figures.num_kept:,} dropped",
        size_line(figures),
        sampled_line(figures),
    ]
    if not figures.num_shards:
        lines = ["no shards yet: samples/ is empty"]
    return (
        Text("reinforced dataset ", overflow="fold").append(figures.uri, style="bold").append("\n" + "\n".join(lines))
    )


def size_line(figures: Figures) -> str:
    size = format_bytes(figures.total_bytes)
    if figures.source_bytes:
        share = figures.total_bytes / figures.source_bytes
        size += f", {100 * share:.3g} % of the {format_bytes(figures.source_bytes)} of source"
    return size if figures.bytes_per_kept is None else f"{size}, {format_bytes(figures.bytes_per_kept)} a kept sample"


def sampled_line(figures: Figures) -> str:
    return f"captions, cosines and norms from {len(figures.sampled_stems):,} of {count(figures.num_shards, 'shard')}"


def label(folder: str) -> str:
    """A signal's folder, shorter: the teacher's name says that these are embeddings."""
    return folder.removeprefix("embeddings/")


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _problems(figures: Figures) -> RenderableType:
    lines = Text(f"{len(figures.problems):,} PROBLEMS" if len(figures.problems) > 1 else "1 PROBLEM", style="bold red")
    for problem in figures.problems[:_MOST_PROBLEMS]:
        lines.append(f"\n{printable(problem.path, 200)}", style="not bold red")
        lines.append(f": {printable(problem.what, 300)}", style="not bold default")
    if len(figures.problems) > _MOST_PROBLEMS:
        lines.append(f"\nand {len(figures.problems) - _MOST_PROBLEMS:,} more, see --json", style="not bold default")
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


def facts(figures: Figures) -> list[tuple[str, str]]:
    """What is missing, dropped, null, cut or failed, in lines of a name and words."""
    facts = []
    if figures.missing_shards and figures.missing_shards.count:
        facts.append(("missing", f"samples: {_missing(figures.missing_shards)} of the source"))
    facts += [
        ("missing", f"{label(signal.folder)}: {_missing(signal.missing)}")
        for signal in figures.signals
        if signal.missing.count
    ]
    facts += [("failed", f"{printable(stem)}: {printable(error, 200)}") for stem, error in figures.failures.items()]
    for drop in figures.drops:
        keys = ", ".join(printable(f"{example.stem}/{example.key}", 40) for example in drop.examples)
        facts.append(("dropped", f"{drop.count:,} {drop.reason}{f': {keys}' if keys else ''}"))
    for signal in figures.signals:
        facts += [("null", f"{number:,} {reason} in {label(signal.folder)}") for reason, number in signal.nulls.items()]
    for signal in figures.signals:
        if signal.num_truncated_texts:
            facts.append(
                ("cut", f"{signal.num_truncated_texts:,} texts longer than the context of {label(signal.folder)}")
            )
    facts += [("left out", f"{number:,} {what}") for what, number in figures.left_out.items()]
    return facts


def _lines(figures: Figures) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    names = [name for name, _ in facts(figures)]
    for index, (name, words) in enumerate(facts(figures)):
        _row(table, name if index == 0 or names[index - 1] != name else "", words)
    return table


def _captions(figures: Figures) -> Table:
    table = _table("captions", "a sample", "words\nmin/mid/max", "distinct", "most frequent", left=(0, 4))
    for source in figures.captions:
        words = f"{source.words_min}/{source.words_median:g}/{source.words_max}"
        top = "\n".join(printable(text, 27) + f"  x {number:,}" * (number > 1) for text, number in source.most_frequent)
        _row(table, source.source, f"{source.captions_per_sample:.2f}", words, f"{source.distinct_ratio:.1%}", top)
    return table


def _cosines(figures: Figures) -> Table:
    table = _table("cosine, clean image to", "mean", "5 %", "50 %", "95 %", "mismatched")
    for cosine in figures.cosines:
        other = "" if cosine.mismatched_mean is None else f"{cosine.mismatched_mean:.3f}"
        _row(table, f"{cosine.teacher}: {cosine.source} captions", *_quantiles(cosine.matched), other)
    for drift in figures.drifts:
        _row(table, f"{drift.teacher}: its {count(drift.num_views, 'view')}", *_quantiles(drift.cosine), "")
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


def _bytes(total: int, per_sample: float | None) -> tuple[str, str]:
    return format_bytes(total), "" if per_sample is None else format_bytes(per_sample)


def _number(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _missing(missing: Missing) -> str:
    names = ", ".join(printable(stem, 40) for stem in missing.examples)
    return f"{count(missing.count, 'shard')} ({names}{', ...' if missing.count > len(missing.examples) else ''})"
