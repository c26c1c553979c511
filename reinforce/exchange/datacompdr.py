"""`reinforce import-datacompdr`: tars of the published layout become a dataset of format 1, shard by shard."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from rich.console import Console

from reinforce.config.base import CaptionerName, ConfigError, Name, Strict
from reinforce.exchange.layout import source_config
from reinforce.exchange.outline import ImportOutline
from reinforce.exchange.peek import CAPTIONER, peek
from reinforce.exchange.shard_import import import_shard
from reinforce.exchange.shards_run import check_apart, fetch, run_shards
from reinforce.runners.summary import BuildSummary
from reinforce.shard_report import ShardReport
from reinforce.shards.dataset import DATASET_FILE, SIGNAL_FILE, read_document
from reinforce.shards.schema import Signal
from reinforce.shards.source import ShardError
from reinforce.storage import ShardRef, StorageError, Store, find_shards, open_spool, open_store


class ImportOptions(Strict):
    """What the user says of published tars, which do not say it themselves."""

    dims: dict[Name, int] = Field(default_factory=dict)
    """Teacher -> width of its embeddings, in the order of the columns. Tars of `reinforce pack` need none."""
    logit_scales: dict[Name, float] = Field(default_factory=dict)
    captioner: CaptionerName | None
    """The name that the synthetic captions get; None: the usual one."""


def import_datacompdr(
    uri: str,
    output: str,
    *,
    dims: Mapping[str, int],
    logit_scales: Mapping[str, float],
    captioner: str | None = None,
    console: Console | None = None,
) -> BuildSummary:
    """Imports the tars that `uri` means, or goes on importing; the command as a function.

    Raises `ConfigError` if `dims` are not those of the data or the output is the input, `DatasetMismatchError` if the
    output was made otherwise. A shard that fails is listed in the summary and in `failures/`, and the others go on.
    """
    try:
        options = ImportOptions(dims=dict(dims), logit_scales=dict(logit_scales), captioner=captioner)
    except ValidationError as error:
        raise ConfigError(f"--dims, --captioner: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    store = open_store(output, create=True)
    recorded = read_document(store, DATASET_FILE)
    source_root, refs = find_shards([uri], recorded["source_root"].partition("?")[0] if recorded else None)
    check_apart(store, source_root)
    for ref in refs:
        if ref.stem.startswith("corpora/"):
            raise ConfigError(f"{ref.stem}: that is what sentences of a corpus are called; rename the folder")
    store.sweep_temporaries()
    with open_spool() as spool:
        outline = _outline(refs, options, spool)
        if recorded is not None and outline.packing is None:
            outline = _with_bounds_of(store, recorded, outline, options.captioner or CAPTIONER)
        outline.record(store, source_root)
        existing = {info.path for info in store.list()}
        missing = [ref for ref in refs if not existing.issuperset(outline.files(ref.stem))]

        def work(ref: ShardRef) -> ShardReport:
            return _import(ref, outline, store, spool)

        return run_shards(
            missing,
            work,
            store,
            console or Console(stderr=True),
            options=options,
            existing=existing,
            num_before=len(refs) - len(missing),
        )


def _outline(refs: list[ShardRef], options: ImportOptions, spool: Path) -> ImportOutline:
    """The outline by the first tar that holds a usable sample."""
    reasons: list[str] = []
    for ref in refs:
        try:
            return peek(fetch(ref, spool), options.dims, options.logit_scales, options.captioner)
        except (ShardError, FileNotFoundError) as error:
            reasons.append(f"{ref.stem} {error}")
    raise StorageError(f"no usable shard: {reasons[0]}")


def _with_bounds_of(store: Store, recorded: dict[str, Any], outline: ImportOutline, captioner: str) -> ImportOutline:
    """The outline with as many columns as the dataset has that was begun, be it by the first samples of other tars."""

    def bound(signal: Signal, field: str, found: int) -> int:
        document = read_document(store, f"{signal.folder}/{SIGNAL_FILE}") or {"content": {}}
        return int(document["content"].get(field, found))

    num_synthetic = bound(Signal("captions", captioner), "num_captions", outline.captioners.get(captioner, 0))
    max_captions = int(recorded["spine"]["source"]["max_captions"])
    return replace(
        outline,
        captioners={captioner: num_synthetic} if num_synthetic else {},
        num_views=bound(Signal("image", outline.teachers[0].name), "num_views", outline.num_views),
        source=source_config(outline.source.captions, max_captions),
    )


def _import(ref: ShardRef, outline: ImportOutline, output: Store, spool: Path) -> ShardReport:
    return import_shard(fetch(ref, spool), ref.stem, outline, output, spool)
