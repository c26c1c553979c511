"""What a training run reads of a reinforced dataset, checked before anything is read.

The dataset says how many teachers, views and captions there are and at which scale a teacher is to be matched; a
recipe only narrows that. Every shard is checked, by one listing, to have all the files that will be read.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from reinforce.config import ConfigError, DataConfig, ModalityConfig, SourceConfig, ViewPolicy
from reinforce.exchange.notes import Notes, PackedDataset, open_dataset_or_packed, read_front
from reinforce.sample import RGB_MODALITY
from reinforce.selection import Selection, read_selection
from reinforce.shards.dataset import Dataset
from reinforce.shards.schema import Signal, view_column
from reinforce.storage import StorageError, find_shards, open_store
from reinforce.student.batch import ORIGINAL, SYNTHETIC
from reinforce.student.sentence_plan import SentencePlan, plan_sentences

_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class ReadPlan:
    """Which shards, signals and columns a run reads. Small and picklable: worker processes open the files anew."""

    dataset_uri: str
    source_root: str
    stems: tuple[str, ...]
    """The shards with every file that is needed."""
    num_skipped_shards: int
    """Those without, if the recipe skips them."""
    seed: int
    data: DataConfig
    source: SourceConfig
    policy: ViewPolicy | None
    """None: the dataset stores its views."""
    teachers: dict[str, dict[str, Any]]
    """Name -> the teacher's description in `signal.json`."""
    num_views: int
    num_captions: dict[str, int]
    """Caption source (`original` or a captioner) -> the bound on captions a sample. Empty: none are read."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Signal folder -> the fingerprint each of its files must have."""
    selection: Selection | None = None
    packed: Notes | None = None
    """Of tars that hold signals as well as images."""
    modalities: dict[str, ModalityConfig] = field(default_factory=dict)
    """Those that are read besides RGB, as they are read, in the order of `data.modalities`."""
    sentences: SentencePlan | None = None
    """What is read beside the images, in the training process itself."""

    @property
    def captioners(self) -> tuple[str, ...]:
        return tuple(name for name in self.num_captions if name != ORIGINAL)

    @property
    def roles(self) -> tuple[str, ...]:
        """The captions of a batch: `original`, `synthetic` or both."""
        return (ORIGINAL,) * (ORIGINAL in self.num_captions) + (SYNTHETIC,) * bool(self.captioners)

    @property
    def logit_scales(self) -> dict[str, float]:
        """The scale at which each teacher is to be matched, as the dataset records it."""
        return {name: float(model["logit_scale"]) for name, model in self.teachers.items()}

    def count_samples(self) -> int:
        """Samples an epoch sees: those kept and selected. Reads the footer, or the keys, of every spine."""
        dataset = open_dataset_or_packed(self.dataset_uri)

        def count(stem: str) -> int:
            if self.packed is not None:
                return int(read_front(dataset.store, f"{stem}.tar").document["num_samples"])
            with dataset.open_spine(stem) as spine:
                if self.selection is None:
                    return int(spine.footer["num_kept"])
                rows = spine.read(["key", "drop_reason"]).to_pylist()
                keys = self.selection.keys(stem)
                return sum(row["drop_reason"] is None and row["key"] in keys for row in rows)

        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            return sum(pool.map(count, self.stems))


def plan_reading(
    dataset_uri: str,
    data: DataConfig,
    *,
    seed: int = 0,
    uses_teachers: bool = True,
    reads_captions: bool = True,
    reads_sentences: bool = False,
    shards: Sequence[str] = (),
    root: str | None = None,
    select: str | None = None,
) -> ReadPlan:
    """Plans what is read; raises `ConfigError` or `FormatError` with what is missing and what there is.

    `root` is where the source is now, if it moved; `shards` narrows the run to these of its shards. Without
    `reads_captions` neither captions nor what teachers said of them is read, and no sample needs one. With
    `reads_sentences` the run reads sentences without images besides.
    """
    dataset = open_dataset_or_packed(dataset_uri)
    packed = dataset.notes if isinstance(dataset, PackedDataset) else None
    if packed is not None and select is not None:
        raise ConfigError("--select: not from packed tars; import them (reinforce import-datacompdr) to select of them")
    if packed is not None and reads_sentences:
        raise ConfigError("student.loss.kind: packed tars hold no corpora, which dime_fm reads; train from the dataset")
    images = {signal.model: document for signal, document in dataset.signals.items() if signal.kind == "image"}
    teachers = _chosen("teachers", data.teachers, images) if uses_teachers else {}
    num_captions = _caption_sources(dataset, data, tuple(teachers)) if reads_captions else {}
    modalities = _modalities(dataset, data)
    signals = _signals(teachers, num_captions, modalities)
    num_views = _num_views(data, images, teachers, dataset.stores_views)
    if data.views_per_decode > max(1, num_views):
        raise ConfigError(
            f"student.data.views_per_decode: {data.views_per_decode} wanted, there are {num_views} views; lower it"
            + ("" if teachers else ", or raise student.data.views")
        )
    selection = read_selection(select) if select else None
    source_root, stems = _stems(dataset, shards, root, selection)
    files = [] if packed else signals
    complete = [stem for stem in stems if all(signal.file(stem) in dataset.sizes for signal in files)]
    _check_complete(dataset, signals, stems, complete, data)
    return ReadPlan(
        dataset_uri=dataset.store.uri,
        source_root=source_root,
        stems=tuple(complete),
        num_skipped_shards=len(stems) - len(complete),
        seed=seed,
        data=data,
        source=packed.source if packed else SourceConfig.model_validate(dataset.document["spine"]["source"]),
        policy=None if dataset.stores_views else ViewPolicy.model_validate(dataset.document["view_policy"]),
        teachers={name: document["model"] for name, document in teachers.items()},
        num_views=num_views,
        num_captions=num_captions,
        fingerprints={signal.folder: dataset.signals[signal]["fingerprint"] for signal in signals},
        selection=selection,
        packed=packed,
        modalities=modalities,
        sentences=plan_sentences(dataset, data, teachers, seed=seed) if reads_sentences else None,
    )


def _signals(teachers: Iterable[str], sources: Collection[str], modalities: Iterable[str]) -> list[Signal]:
    """Those that a run reads of every shard."""
    teachers = tuple(teachers)
    signals = [Signal("image", name) for name in teachers]
    signals += [Signal("captions", name) for name in sources if name != ORIGINAL]
    signals += [Signal("text", teacher, source) for teacher in teachers for source in sources]
    return signals + [Signal("modality", name) for name in modalities]


def _modalities(dataset: Dataset, data: DataConfig) -> dict[str, ModalityConfig]:
    """The modalities besides RGB that are read, with the dataset's range or the recipe's.

    A range may be of one that is not read, so that a control with fewer modalities is another `data.modalities` alone.
    """
    found = {signal.model: document for signal, document in dataset.signals.items() if signal.kind == "modality"}
    wanted = [name for name in data.modalities if name != RGB_MODALITY]
    if wanted and isinstance(dataset, PackedDataset):
        raise ConfigError("student.data.modalities: packed tars hold rgb alone; train from the dataset they are of")
    for option, names in (("modalities", wanted), ("modality_ranges", list(data.modality_ranges))):
        unknown = next((name for name in names if name not in found), None)
        if unknown is not None:
            has = _names({**found, RGB_MODALITY: None} if option == "modalities" else found)
            raise ConfigError(
                f"student.data.{option}: the dataset has no {unknown!r}; it has {has} (a dataset keeps the modalities "
                "it was begun with)"
            )
    return {
        name: ModalityConfig(
            suffix=found[name]["content"]["suffix"],
            range=data.modality_ranges.get(name, found[name]["content"]["range"]),
        )
        for name in wanted
    }


def _chosen(field: str, wanted: tuple[str, ...] | None, found: dict[str, Any]) -> dict[str, Any]:
    """The signals of the models a recipe names, or of all there are, by name in the order of the dataset."""
    unknown = sorted(set(wanted or ()) - set(found))
    if unknown:
        raise ConfigError(f"student.data.{field}: the dataset has no {unknown[0]!r}; it has {_names(found)}")
    if not found and wanted is None and field == "teachers":
        raise ConfigError("student.data.teachers: the dataset has no teacher's image embeddings; use loss.kind clip")
    return {name: found[name] for name in sorted(found) if wanted is None or name in wanted}


def _caption_sources(dataset: Dataset, data: DataConfig, teachers: tuple[str, ...]) -> dict[str, int]:
    """Bound of captions by source; every teacher must have embedded every source."""
    captioners = {signal.model: document for signal, document in dataset.signals.items() if signal.kind == "captions"}
    sources = {}
    if data.original_captions:
        sources[ORIGINAL] = int(dataset.document["spine"]["source"]["max_captions"])
        if not sources[ORIGINAL]:
            raise ConfigError("student.data.original_captions: the dataset kept none; set it to false")
    for name, document in _chosen("captioners", data.captioners, captioners).items():
        sources[name] = int(document["content"]["num_captions"])
    if not sources:
        raise ConfigError("student.data: no captions are read; set original_captions or name captioners")
    for teacher in teachers:
        for name in sources:
            signal = Signal("text", teacher, name)
            if signal not in dataset.signals:
                hint = "original_captions=false" if name == ORIGINAL else "captioners"
                raise ConfigError(
                    f"student.data: the dataset has no {signal.folder}; build it, or set student.data.{hint}"
                )
    return sources


def _num_views(data: DataConfig, images: dict[str, Any], teachers: dict[str, Any], stores_views: bool) -> int:
    """K of the run: no more than every teacher in use has seen, and where views are stored, no more than there are."""
    found: list[list[str]] = [document["columns"] for document in (teachers or images).values()]
    stored = min((sum(column != view_column(0) for column in columns) for columns in found), default=None)
    if teachers and data.views == 0 and not all(view_column(0) in columns for columns in found):
        raise ConfigError("student.data.views: 0 is the clean view, which the dataset's teachers have not seen")
    if data.views is None:
        if stored is None:
            raise ConfigError("student.data.views: the dataset has no image embeddings; say how many views to draw")
        return stored
    if (teachers or stores_views) and stored is not None and data.views > stored:
        raise ConfigError(f"student.data.views: {data.views} wanted, the dataset's teachers have seen {stored}")
    return data.views


def _stems(
    dataset: Dataset, shards: Sequence[str], root: str | None, selection: Selection | None
) -> tuple[str, list[str]]:
    """Where the source is, and the dataset's shards that the run is to use."""
    source_root = open_store(root or dataset.document["source_root"]).uri
    stems = dataset.stems
    if shards:
        try:
            source_root, refs = find_shards(shards, root or source_root)
        except StorageError:
            if root is not None:
                raise
            source_root, refs = find_shards(shards)  # the source moved: its root is where these are
        wanted = {ref.stem for ref in refs}
        stems = [stem for stem in stems if stem in wanted]
        if not stems:
            example = next(iter(sorted(wanted)), "none")
            raise ConfigError(
                f"--shards: none is a shard of the dataset (shard {example}, dataset {dataset.stems[:1]})"
            )
    if selection is not None:
        selected = set(selection.stems)
        stems = [stem for stem in stems if stem in selected]
        if not stems:
            raise ConfigError("--select: names no shard of the dataset")
    if not stems:
        raise ConfigError(f"{dataset.store.uri}: holds no finished shard; build it first")
    return source_root, stems


def _check_complete(
    dataset: Dataset, signals: list[Signal], stems: list[str], complete: list[str], data: DataConfig
) -> None:
    if len(complete) == len(stems) or (complete and data.missing == "skip"):
        return
    absent = Counter(signal.folder for signal in signals for stem in stems if signal.file(stem) not in dataset.sizes)
    folder, count = absent.most_common(1)[0]
    raise ConfigError(
        f"{dataset.store.uri}: {len(stems) - len(complete)} of {len(stems)} shards are not finished ({folder} lacks "
        f"{count}); run the build again, or --set student.data.missing=skip"
    )


def _names(found: dict[str, Any]) -> str:
    return ", ".join(sorted(found)) or "none"
