"""What `--verify` prints: one screen of what was looked at, then the faults."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reinforce.formatting import format_seconds
from reinforce.inspection.faults import Fault, Recomputed, Verification
from reinforce.inspection.words import count, format_bytes, printable

_NUM_SHOWN = 20
_MOST_CHARACTERS = 400


def render_verdict(found: Verification) -> RenderableType:
    """One screen: what was checked, then the first 20 faults."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(found).items():
        table.add_row(Text(name), Text(value))
    shown = [Text(f"  {printable(line_of(fault), _MOST_CHARACTERS)}") for fault in found.faults[:_NUM_SHOWN]]
    num_hidden = len(found.faults) - len(shown)
    more = [Text(f"  ... and {num_hidden:,} more: --json has them all")] if num_hidden else []
    verdict = f"{count(len(found.faults), 'fault')}:" if found.faults else "no fault found"
    return Group(table, Text(), Text(verdict, style="bold"), *shown, *more)


def line_of(fault: Fault) -> str:
    """One line: file, column, row, key, and what is wrong."""
    place = [fault.path]
    place += [f"column {fault.column}"] if fault.column is not None else []
    place += [f"row {fault.row}"] if fault.row is not None else []
    place += [f"key {fault.key!r}"] if fault.key is not None else []
    return f"{', '.join(place)}: {fault.what}"


def _rows(found: Verification) -> dict[str, str]:
    source = "not checked"
    if found.source is not None:
        source = f"{count(found.num_sources, 'shard')}, {format_bytes(found.source_bytes)}, at {found.source}"
    shards = count(found.num_shards, "shard")
    if found.num_sentence_files:
        shards += f" and {count(found.num_sentence_files, 'file')} of sentences"
    rows = {
        "dataset": found.uri,
        "checked": f"{count(found.num_files, 'file')} of {shards}, "
        f"{format_bytes(found.num_bytes)}, {count(found.num_cells, 'cell')}, in {_seconds(found.elapsed_s)}",
        "source": source,
    }
    if found.num_sentence_sources:
        size = format_bytes(found.sentence_source_bytes)
        rows["sentences"] = f"{count(found.num_sentence_sources, 'file')}, {size}, read again"
    elif found.num_sentence_files:
        rows["sentences"] = "source not checked"
    if found.recomputed is not None:
        rows |= _recomputed_rows(found.recomputed)
    if found.num_without_digest:
        rows["no digest"] = (
            f"{count(found.num_without_digest, 'file')} of an older version: page checksums are all there is"
        )
    if found.num_ignored:
        rows["ignored"] = f"{count(found.num_ignored, 'object')} that the format does not know"
    if found.failures:
        first = next(iter(found.failures.items()))
        rows["failed shards"] = printable(f"{len(found.failures):,}, such as {first[0]}: {first[1]}", _MOST_CHARACTERS)
    return rows


def _recomputed_rows(recomputed: Recomputed) -> dict[str, str]:
    elapsed = _seconds(recomputed.elapsed_s)
    rows = {"computed again": f"{count(recomputed.num_cells, 'cell')} (seed {recomputed.seed}), in {elapsed}"}
    for signal in recomputed.signals:
        least = "" if signal.min_cosine is None else f", cosine {signal.min_cosine:.6f} or more"
        rows[f"  {signal.folder}"] = (
            f"{count(signal.num_cells, 'cell')}, {signal.num_equal:,} equal{least} "
            f"(bound {signal.bound:.6f}, {signal.precision})"
        )
    return rows


def _seconds(elapsed_s: float) -> str:
    return f"{elapsed_s:.1f} s" if elapsed_s < 10 else format_seconds(elapsed_s)
