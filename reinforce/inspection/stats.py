"""What a dataset holds, what is missing, and whether its parts fit: the figures behind `reinforce inspect`.

Footers are read of all shards, values of at most `num_sampled` shards, chosen evenly and named in the figures. It
works while a build runs: a signal file that is not there yet is counted as missing, not as a fault.
"""

from collections.abc import Sequence

from reinforce.inspection.figures import DropFigures, Figures, Missing, Problem, SignalFigures
from reinforce.inspection.footers import FooterTotals, noted, read_footers
from reinforce.inspection.values import SampledValues, evenly, read_values
from reinforce.shards.dataset import Dataset, open_dataset, read_document
from reinforce.shards.schema import Signal, failure_file, spine_file
from reinforce.storage import find_shards

_NUM_EXAMPLES = 3


def inspect_dataset(uri: str, *, shards: Sequence[str] = (), root: str | None = None, num_sampled: int = 16) -> Figures:
    """Inspects a dataset; with `shards`, also which of those source shards have no part in it.

    Raises `FormatError` if there is no dataset, `StorageError` if it or the shards cannot be listed. What is wrong
    with single files is listed in `problems`.
    """
    dataset = open_dataset(uri)
    missing_shards = _missing_shards(dataset, shards, root) if shards else None
    totals = read_footers(dataset)
    unreadable = {problem.path for problem in totals.problems}
    values = read_values(dataset, evenly(dataset.stems, num_sampled), unreadable)
    problems = totals.problems + values.problems
    failures = _failures(dataset, problems)
    spine_bytes = sum(dataset.sizes[spine_file(stem)] for stem in dataset.stems)
    signals = tuple(_signal(dataset, signal, totals, values) for signal in dataset.signals)
    total_bytes = spine_bytes + sum(signal.num_bytes for signal in signals)
    return Figures(
        uri=dataset.store.uri,
        num_shards=len(dataset.stems),
        num_samples=totals.num_samples,
        num_kept=totals.num_kept,
        source_bytes=totals.source_bytes,
        spine_bytes=spine_bytes,
        total_bytes=total_bytes,
        bytes_per_kept=_ratio(total_bytes, totals.num_kept),
        drops=tuple(DropFigures(r, n, tuple(values.drops[r])) for r, n in totals.drops.most_common()),
        left_out=dict(sorted(totals.left_out.items())),
        signals=signals,
        missing_shards=missing_shards,
        failures=failures,
        problems=tuple(problems),
        sampled_stems=tuple(values.stems),
        captions=values.caption_figures(),
        cosines=values.cosine_figures(),
        drifts=values.drift_figures(),
    )


def _signal(dataset: Dataset, signal: Signal, totals: FooterTotals, values: SampledValues) -> SignalFigures:
    stems = dataset.stems_of(signal)
    return SignalFigures(
        folder=signal.folder,
        num_columns=len(dataset.signals[signal].get("columns", ())),
        num_files=len(stems),
        missing=_missing(set(dataset.stems) - set(stems)),
        num_bytes=sum(dataset.sizes[signal.file(stem)] for stem in stems),
        bytes_per_kept=_ratio(totals.bytes_of[signal], totals.rows_of[signal]),
        nulls=dict(sorted(totals.nulls[signal].items())),
        num_truncated_texts=totals.num_truncated_texts[signal],
        max_norm_error=values.norm_errors.get(signal),
    )


def _missing_shards(dataset: Dataset, shards: Sequence[str], root: str | None) -> Missing:
    _, refs = find_shards(shards, root or dataset.document.get("source_root"))
    return _missing({ref.stem for ref in refs} - set(dataset.stems))


def _missing(stems: set[str]) -> Missing:
    return Missing(len(stems), tuple(sorted(stems)[:_NUM_EXAMPLES]))


def _failures(dataset: Dataset, problems: list[Problem]) -> dict[str, str]:
    """The shards that failed, with the error of their last attempt."""
    prefix, suffix = failure_file("\0").split("\0")
    failures = {}
    for path in sorted(dataset.sizes):
        if path.startswith(prefix) and path.endswith(suffix):
            with noted(problems, dataset, path):
                document = read_document(dataset.store, path)
                if document is not None:  # else the shard has succeeded since
                    error = str(document.get("error", "no reason given"))
                    failures[path.removeprefix(prefix).removesuffix(suffix)] = error
    return failures


def _ratio(num_bytes: int, num_kept: int) -> float | None:
    return num_bytes / num_kept if num_kept else None
