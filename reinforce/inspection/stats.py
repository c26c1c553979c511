"""What a dataset holds, what is missing, and whether its parts fit: the figures behind `reinforce inspect`.

One listing, footers of up to 1,024 shards, values of up to 8,192 samples; with `is_full` all footers and all clean
views. It works while a build runs: a signal file that is not there yet is counted as missing, not as a fault.
"""

from collections.abc import Sequence
from dataclasses import replace

from reinforce.inspection.banks import bank_figures
from reinforce.inspection.corpora import corpus_figures
from reinforce.inspection.doubts import find_doubts
from reinforce.inspection.duplicates import chosen_teacher, find_all_duplicates, find_duplicates
from reinforce.inspection.figures import (
    MOST_STEMS,
    DropFigures,
    DuplicateFigures,
    Figures,
    Missing,
    Problem,
    SignalFigures,
)
from reinforce.inspection.footers import FooterTotals, noted, read_footers
from reinforce.inspection.gather import NUM_EXAMPLES, SampledValues, note_drops, note_nulls, read_values
from reinforce.inspection.listing import Listing, list_dataset
from reinforce.inspection.runs import read_runs, total_cost
from reinforce.inspection.sampling import MOST_VALUE_SHARDS, footer_shards, value_shards
from reinforce.inspection.teachers import agreements
from reinforce.inspection.words import reading
from reinforce.shards.dataset import Dataset, open_dataset, read_document
from reinforce.shards.explicit import IMPORTED
from reinforce.shards.schema import Signal, failure_file
from reinforce.storage import find_shards

_MOST_FAILURES = 100


def inspect_dataset(
    uri: str,
    *,
    shards: Sequence[str] = (),
    root: str | None = None,
    is_full: bool = False,
    num_sampled: int = MOST_VALUE_SHARDS,
) -> Figures:
    """Inspects a dataset; with `shards`, also which of those source shards have no part in it.

    `is_full` reads the footers of all shards and compares the clean views of all images. Values are of at most
    `num_sampled` shards. Raises `FormatError` if there is no dataset, `StorageError` if it or the shards cannot be
    listed. What is wrong with single files is listed in `problems`.
    """
    dataset = open_dataset(uri)
    listing = list_dataset(dataset)
    missing_shards = _missing_shards(dataset, listing, shards, root) if shards else None
    totals = read_footers(dataset, listing, footer_shards(listing, is_full=is_full))
    problems = listing.problems + totals.problems
    unreadable = {problem.path for problem in problems}
    sample = value_shards(listing, totals.num_kept / max(totals.num_shards, 1), num_sampled)
    values = read_values(dataset, listing, sample, unreadable)
    problems += values.problems
    _add_examples(dataset, totals, values)
    figures = _counted(dataset, listing, totals, values)
    failures = _failures(dataset, listing, problems)
    runs = read_runs(dataset, listing.run_parts, problems)
    figures = replace(
        figures,
        missing_shards=missing_shards,
        failures=failures,
        num_failures=len(failures) if len(listing.failed) <= _MOST_FAILURES else len(listing.failed),
        duplicates=_duplicates(dataset, listing, values, problems, is_full=is_full, num_kept=figures.num_kept),
        banks=bank_figures(dataset, listing, problems),
        corpora=corpus_figures(dataset, listing, problems, is_full=is_full),
        runs=runs,
        cost=total_cost(runs),
        problems=tuple(problems),
    )
    contents = {signal.folder: document.get("content", {}) for signal, document in listing.signals.items()}
    # What is imported may be further from unit norm than rounding explains.
    bits = {
        folder: content["mantissa_bits"]
        for folder, content in contents.items()
        if content.get("kind") != IMPORTED and isinstance(content.get("mantissa_bits"), int)
    }
    return replace(figures, doubts=tuple(find_doubts(figures, bits)))


def _counted(dataset: Dataset, listing: Listing, totals: FooterTotals, values: SampledValues) -> Figures:
    """The figures that listing, footers and values give; the rest is filled in later."""
    scale = len(listing.stems) / totals.num_shards if totals.num_shards else 1.0
    signals = tuple(_signal(listing, signal, totals, values) for signal in listing.signals)
    spine_bytes = int(listing.spine_bytes.sum())
    sample_bytes = spine_bytes + sum(signal.num_bytes for signal in signals)
    num_kept = round(scale * totals.num_kept)
    drifts = (teacher.drift_figures(name) for name, teacher in values.teachers.items())
    return Figures(
        uri=dataset.store.uri,
        num_shards=len(listing.stems),
        num_samples=round(scale * totals.num_samples),
        num_kept=num_kept,
        source_bytes=round(scale * totals.source_bytes),
        spine_bytes=spine_bytes,
        total_bytes=sample_bytes
        + sum(sum(sizes.values()) for sizes in listing.banks.values())
        + sum(files.num_bytes for files in listing.corpora.values()),
        bytes_per_kept=sample_bytes / num_kept if num_kept else None,
        drops=tuple(DropFigures(r, round(scale * n), tuple(values.drops[r])) for r, n in totals.drops.most_common()),
        left_out={name: round(scale * number) for name, number in sorted(totals.left_out.items())},
        signals=signals,
        missing_shards=None,
        failures={},
        problems=(),
        sampled_stems=tuple(values.stems),
        captions=values.caption_figures(),
        cosines=tuple(c for name, teacher in values.teachers.items() for c in teacher.cosine_figures(name)),
        drifts=tuple(drift for drift in drifts if drift is not None),
        agreements=agreements(values.teachers),
        null_examples=values.null_examples({signal.folder: signal.nulls for signal in signals}),
        incomplete=listing.incomplete(),
        num_footer_shards=totals.num_shards,
        num_sampled_samples=values.num_samples,
    )


def _signal(listing: Listing, signal: Signal, totals: FooterTotals, values: SampledValues) -> SignalFigures:
    num_files, num_columns = listing.num_files(signal), len(listing.signals[signal].get("columns", ()))
    scale = num_files / totals.files_of[signal] if totals.files_of[signal] else 1.0
    num_cells = totals.rows_of[signal] * (num_columns if signal.kind in ("image", "text") else 1)
    num_values = num_cells - totals.nulls[signal].total()
    return SignalFigures(
        folder=signal.folder,
        num_columns=num_columns,
        num_files=num_files,
        missing=listing.missing(signal),
        num_bytes=listing.num_bytes(signal),
        bytes_per_kept=totals.bytes_of[signal] / totals.rows_of[signal] if totals.rows_of[signal] else None,
        nulls={reason: round(scale * number) for reason, number in sorted(totals.nulls[signal].items())},
        num_truncated_texts=round(scale * totals.num_truncated_texts[signal]),
        max_norm_error=values.norm_errors.get(signal),
        num_values=round(scale * num_values),
        reading=reading(listing.signals[signal]) if signal.kind == "modality" else None,
    )


def _add_examples(dataset: Dataset, totals: FooterTotals, values: SampledValues) -> None:
    """Looks for drops and nulls that footers count and the sampled rows have none of; what is damaged is left alone."""
    for reason, stems in totals.stems_of_drop.items():
        for stem in stems:
            if len(values.drops[reason]) < NUM_EXAMPLES:
                with noted([], dataset, stem), dataset.open_spine(stem) as file:
                    rows = file.read(["key", "drop_reason", "drop_detail"]).to_pylist()
                    note_drops(values.drops, stem, [row for row in rows if row["drop_reason"] == reason])
    for signal, stems in totals.stems_of_null.items():
        reasons = {reason for reason, number in totals.nulls[signal].items() if number}
        for stem in stems:
            named = {reason for (folder, reason), names in values.nulls.items() if folder == signal.folder and names}
            if reasons - named if signal.kind == "modality" else not named:
                with noted([], dataset, stem), dataset.open(signal, stem) as file:
                    note_nulls(values.nulls, signal, stem, file, reasons)


def _duplicates(
    dataset: Dataset,
    listing: Listing,
    values: SampledValues,
    problems: list[Problem],
    *,
    is_full: bool,
    num_kept: int,
) -> tuple[DuplicateFigures, ...]:
    signal = chosen_teacher(listing)
    if signal is None:
        return ()
    if is_full:
        found = find_all_duplicates(dataset, listing, signal, {problem.path for problem in problems}, problems)
    else:
        views = values.teachers[signal.model].clean_views()
        is_all = values.num_samples == num_kept
        found = None if views is None else find_duplicates(signal.model, views, values.name, is_full=is_all)
    return () if found is None else (found,)


def _missing_shards(dataset: Dataset, listing: Listing, shards: Sequence[str], root: str | None) -> Missing:
    _, refs = find_shards(shards, root or str(dataset.document.get("source_root")).partition("?")[0])
    stems = sorted({ref.stem for ref in refs}.difference(listing.stems))
    return Missing(len(stems), tuple(stems[:MOST_STEMS]))


def _failures(dataset: Dataset, listing: Listing, problems: list[Problem]) -> dict[str, str]:
    """The shards that failed, with the error of their last attempt; the first 100 of them."""
    failures = {}
    for stem in listing.failed[:_MOST_FAILURES]:
        path = failure_file(stem)
        with noted(problems, dataset, path):
            document = read_document(dataset.store, path)
            if document is not None:  # else the shard has succeeded since
                failures[stem] = str(document.get("error", "no reason given"))
    return failures
