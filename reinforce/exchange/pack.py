"""`reinforce pack`: a dataset and its images as tars of the published layout, one for each source shard.

`packed.json` beside them, and the first member of each tar, say what that layout cannot.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from reinforce.config import ConfigError
from reinforce.config.base import Strict
from reinforce.exchange.notes import PACKED_FILE, Notes, read_front
from reinforce.exchange.shard_pack import pack_shard
from reinforce.exchange.shards_run import check_apart, fetch, run_shards
from reinforce.plan import ORIGINAL
from reinforce.runners.summary import BuildSummary
from reinforce.shard_report import ShardReport
from reinforce.shards.dataset import DATASET_FILE, Dataset, create_or_compare, open_dataset
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import FORMAT_VERSION, Signal
from reinforce.storage import ShardRef, Store, find_shards, open_spool, open_store


class PackOptions(Strict):
    """How a dataset is packed."""

    embeddings: Literal["npz", "pth.gz"] = "npz"
    """float32, or bfloat16 as torch saves it."""
    shortest_side: int | None = None
    """Of the packed images in pixels, where they are larger; None: images keep their bytes."""


def pack(
    uri: str,
    output: str,
    *,
    options: PackOptions | None = None,
    shards: Sequence[str] = (),
    root: str | None = None,
    console: Console | None = None,
) -> BuildSummary:
    """Packs the finished shards of a dataset, or goes on packing; the command as a function.

    `shards` narrows it to these of its source shards, `root` is where the source is now. Raises `ConfigError` for a
    dataset that the layout cannot hold or an output that holds anything else, `DatasetMismatchError` if the output was
    packed otherwise.
    """
    options = options or PackOptions()
    dataset = open_dataset(uri)
    notes = Notes(_document(dataset, options))
    refs = _refs(dataset, shards, root)
    incomplete = [ref for ref in refs if any(signal.file(ref.stem) not in dataset.sizes for signal in notes.signals)]
    if incomplete:
        raise ConfigError(
            f"{dataset.store.uri}: {len(incomplete)} of {len(refs)} shards are not finished ({incomplete[0].stem}); "
            "run the build again, or name the finished ones with --shards"
        )
    store = open_store(output, create=True)
    check_apart(store, refs[0].store.uri)
    if store.exists(DATASET_FILE):
        raise ConfigError(f"--output {store.uri}: is a dataset; give the tars a folder of their own")
    store.sweep_temporaries()
    existing = {info.path for info in store.list()}
    if PACKED_FILE in existing:
        _record(store, notes)
    console = console or Console(stderr=True)
    if names := [signal.model for signal in dataset.signals if signal.kind == "modality"]:
        text = f"the packed layout has one image a sample: those of {', '.join(names)} are left out"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    missing = [ref for ref in refs if ref.path not in existing or not _is_packed(store, ref, notes)]
    _record(store, notes)
    with open_spool() as spool:

        def work(ref: ShardRef) -> ShardReport:
            return _pack(ref, dataset, notes, store, spool)

        return run_shards(
            missing,
            work,
            store,
            console,
            options=options,
            existing=existing,
            num_before=len(refs) - len(missing),
        )


def _record(output: Store, notes: Notes) -> None:
    create_or_compare(output, PACKED_FILE, dict(notes.document), list(notes.document))


def _is_packed(output: Store, ref: ShardRef, notes: Notes) -> bool:
    """True for a tar that is there; raises `ConfigError` if it is not of this packing."""
    with suppress(FormatError):
        found = read_front(output, ref.path)
        if found.is_of(notes) and found.document.get("stem") == ref.stem:
            return True
    raise ConfigError(f"--output: {output.uri_of(ref.path)} is not a tar of this packing; give another folder")


def _pack(ref: ShardRef, dataset: Dataset, notes: Notes, output: Store, spool: Path) -> ShardReport:
    max_pixels = notes.dataset["spine"]["source"]["max_pixels"]
    packed, report = pack_shard(dataset, ref.stem, fetch(ref, spool), notes, spool, max_pixels=max_pixels)
    output.put_if_absent(ref.path, packed)
    packed.unlink()
    return report


def _document(dataset: Dataset, options: PackOptions) -> dict[str, Any]:
    """`packed.json`; raises `ConfigError` for what the layout cannot hold."""
    signals = dataset.signals
    teachers = [signal.model for signal in signals if signal.kind == "image"]
    captioners = [signal.model for signal in signals if signal.kind == "captions"]
    if not teachers:
        raise ConfigError(f"{dataset.store.uri}: no teacher has embedded its images; there is nothing to pack")
    spine, policy = dataset.document["spine"], dataset.document["view_policy"]
    if not spine["source"]["max_captions"]:
        raise ConfigError(f"{dataset.store.uri}: keeps no original captions; the packed layout has one of each sample")
    if policy and policy["hflip"] > 0:
        raise ConfigError(
            f"{dataset.store.uri}: its views are mirrored with probability {policy['hflip']:g} (view_policy.hflip), "
            "which the packed layout cannot say; build with views.hflip 0"
        )
    wanted = [Signal("captions", name) for name in captioners]
    for teacher in teachers:
        wanted += [Signal("image", teacher), *(Signal("text", teacher, name) for name in (ORIGINAL, *captioners))]
    absent = [signal.folder for signal in wanted if signal not in signals]
    if absent:
        raise ConfigError(f"{dataset.store.uri}: has no {absent[0]}; the packed layout has all teachers of all texts")
    kept = ("spine", "spine_fingerprint", "view_policy", "views")
    return {
        "format_version": FORMAT_VERSION,
        "dataset": {name: dataset.document[name] for name in kept if name in dataset.document},
        "signals": {signal.folder: signals[signal] for signal in wanted},
        "teachers": [[name, signals[Signal("image", name)]["model"]["dim"]] for name in teachers],
        "captioners": captioners,
        **options.model_dump(mode="json"),
    }


def _refs(dataset: Dataset, shards: Sequence[str], root: str | None) -> list[ShardRef]:
    """The source shards to pack."""
    source = open_store(root or dataset.document["source_root"])
    if shards:
        _, refs = find_shards(shards, source.uri)
        found = [ref for ref in refs if ref.stem in set(dataset.stems)]
    else:
        sizes = {info.path: info.size for info in source.list()}
        # One that is gone is not passed over: it fails when its turn comes.
        found = [ShardRef(source, f"{stem}.tar", stem, sizes.get(f"{stem}.tar", 0)) for stem in dataset.stems]
    if not found:
        raise ConfigError(f"{dataset.store.uri}: holds no finished shard of those asked for")
    return found
