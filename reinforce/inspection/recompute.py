"""Whether embeddings are true: random cells computed again with the recorded teachers, from source and captions.

The only part of an inspection that loads models. All recorded teachers are held at once, as in a build; a shard's tar
is fetched once, and at most a micro-batch of views, and the cells of one shard, wait for a teacher.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

from reinforce.config import Precision, TeacherConfig
from reinforce.inspection.cells import (
    AnySignal,
    CorpusSignal,
    Recomputation,
    ShardCells,
    document_of,
    draw_cells,
    seed_of,
)
from reinforce.inspection.documents import Documents
from reinforce.inspection.faults import Fault, Recomputed, SignalCosines
from reinforce.inspection.inputs import Input, inputs_of_shard
from reinforce.inspection.source_tars import SourceTars
from reinforce.inspection.vectors import rounding_error
from reinforce.shards.dataset import DATASET_FILE, SIGNAL_FILE, Dataset
from reinforce.shards.explicit import IMPORTED
from reinforce.shards.schema import round_mantissa
from reinforce.teachers import Teacher, load_teacher, recorded_config
from reinforce.weights import ModelError, WeightsChangedError, autocast_dtype, resolve_device

_LEAST_COSINES: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.9995, "bf16": 0.998}
"""Between embeddings of the same in two places, one of them in this precision, the other in it or in fp32.

fp32: what the format promises. bf16: the least of 512 CIFAR-10 images was 0.9997 to fp32, with two small ResNets; both
places may be off by that, so the angle is doubled, and a quarter is left for larger models. fp16 is ten times nearer.
"""


def cosine_bound(mantissa_bits: int, dim: int, precision: Precision) -> float:
    """The least cosine of a stored row to the same row computed again and rounded.

    Each lies within e = `rounding_error` of its row of unit norm, so it is turned from it by asin(e) at most. The rows
    of unit norm differ by what another device, library or micro-batch does: by acos(c), where c is the 0.9999 that the
    format promises for fp32, and less for lower precisions. Angles add up: cos(2 asin(e) + acos(c)).
    """
    angle = 2 * math.asin(min(1.0, rounding_error(mantissa_bits, dim))) + math.acos(_LEAST_COSINES[precision])
    return math.cos(min(math.pi, angle))


@dataclass(frozen=True)
class RecordedTeachers:
    """The teachers of a dataset, loaded again, with the signals that they are to compute; what was wrong with them."""

    teachers: dict[str, Teacher]
    signals: tuple[AnySignal, ...]
    faults: tuple[Fault, ...]


def load_recorded(documents: Documents, sources: SourceTars | None, wanted: Recomputation) -> RecordedTeachers:
    """Loads the teachers that can be asked again, before anything else is read.

    Left out are imported teachers, which nobody can load, and signals whose documents have faults. A teacher whose
    weights are not the recorded ones is a fault, and not used. Raises `ModelError` for one that cannot be loaded.
    """
    damaged = {faults.path for faults in documents.checked if faults.found}
    every: list[AnySignal] = [*documents.signals, *starmap(CorpusSignal, sorted(documents.sentence_signals))]
    signals = [
        signal
        for signal in every
        if _is_wanted(signal, documents, sources)
        and document_of(documents, signal)["content"].get("kind") != IMPORTED
        and not damaged & {DATASET_FILE, f"{signal.folder}/{SIGNAL_FILE}"}
    ]
    unknown = sorted(set(wanted.teachers) - {s.model for s in every if s.kind in ("image", "text", "sentences")})
    if unknown:
        raise ModelError(f"--teacher {unknown[0]}: the dataset has no such teacher")
    teachers, faults = _load_all(documents, signals, wanted.teachers)
    return RecordedTeachers(teachers, tuple(s for s in signals if s.model in teachers), tuple(faults))


def recompute(
    dataset: Dataset,
    documents: Documents,
    sources: SourceTars | None,
    shards: Sequence[ShardCells],
    spool: Path,
    wanted: Recomputation,
    recorded: RecordedTeachers,
) -> tuple[Recomputed, list[Fault]]:
    """Computes cells of `shards` again and compares them; without `sources` those of texts and of sentences alone.

    Raises `StorageError` if the source cannot be reached.
    """
    start = time.perf_counter()
    seed = seed_of(documents) if wanted.seed is None else wanted.seed
    loaded, faults = recorded.teachers, list(recorded.faults)
    num_columns = {signal: len(document_of(documents, signal)["columns"]) for signal in recorded.signals}
    cells = draw_cells(num_columns, shards, wanted.num_cells, seed)
    queues = {signal: _Queue(signal, loaded[signal.model], document_of(documents, signal)) for signal in num_columns}
    image_sizes = {name: teacher.image_size for name, teacher in loaded.items()}
    for of_shard in cells.values():
        for item in inputs_of_shard(dataset, documents, sources, of_shard, image_sizes, spool, faults):
            queues[item.cell.signal].add(item)
    for queue in queues.values():
        queue.flush()
        faults += queue.faults
    found = tuple(queue.cosines() for queue in queues.values())
    num_cells = sum(signal.num_cells for signal in found)
    return Recomputed(seed, num_cells, found, round(time.perf_counter() - start, 3)), faults


class _Queue:
    """The cells of one signal on their way through its teacher, a micro-batch at a time."""

    def __init__(self, signal: AnySignal, teacher: Teacher, document: dict[str, Any]) -> None:
        self.faults: list[Fault] = []
        self._signal, self._teacher, self._columns = signal, teacher, document["columns"]
        self._bits = int(document["content"]["mantissa_bits"])
        self._precision: Precision = document["content"]["precision"]
        self._bound = cosine_bound(self._bits, teacher.dim, self._precision)
        self._waiting: list[Input] = []
        self._cosines: list[float] = []
        self._num_equal = 0

    def add(self, item: Input) -> None:
        self._waiting.append(item)
        if len(self._waiting) >= (self._teacher.micro_batch or 1):
            self.flush()

    def flush(self) -> None:
        """Embeds what waits, and compares."""
        if not self._waiting:
            return
        if self._signal.kind == "image":
            embeddings = self._teacher.embed_images(np.stack([np.asarray(item.content) for item in self._waiting]))
        else:
            embeddings, _ = self._teacher.embed_texts([str(item.content) for item in self._waiting])
        for item, embedding in zip(self._waiting, round_mantissa(embeddings, self._bits), strict=True):
            self._compare(item, embedding)
        self._waiting.clear()

    def _compare(self, item: Input, computed: np.ndarray) -> None:
        one, other = computed.astype(np.float64), item.stored.astype(np.float64)
        norms = float(np.linalg.norm(one) * np.linalg.norm(other))
        cosine = float(one @ other) / norms if norms else math.nan
        self._cosines.append(cosine)
        self._num_equal += bool((computed == item.stored).all())
        if not cosine >= self._bound:
            cell = item.cell
            what = f"cosine {cosine:.4f} to the same computed again, at least {self._bound:.4f} expected"
            path = cell.signal.file(cell.stem)
            self.faults.append(Fault(path, what, self._columns[cell.column], cell.row, item.key))

    def cosines(self) -> SignalCosines:
        return SignalCosines(
            folder=self._signal.folder,
            num_cells=len(self._cosines),
            num_equal=self._num_equal,
            min_cosine=min(self._cosines, default=None),
            bound=self._bound,
            precision=_precision_here(self._precision),
        )


def _is_wanted(signal: AnySignal, documents: Documents, sources: SourceTars | None) -> bool:
    """Texts need no source; views that are stored instead of drawn are not replayed here."""
    return signal.kind in ("text", "sentences") or (
        signal.kind == "image" and sources is not None and not documents.is_explicit
    )


def _load_all(
    documents: Documents, signals: Sequence[AnySignal], moved: Mapping[str, str]
) -> tuple[dict[str, Teacher], list[Fault]]:
    teachers: dict[str, Teacher] = {}
    faults = []
    for name in dict.fromkeys(signal.model for signal in signals):
        of_teacher = [signal for signal in signals if signal.model == name]
        path = f"{of_teacher[0].folder}/{SIGNAL_FILE}"
        try:
            teacher = _load(name, document_of(documents, of_teacher[0]), moved.get(name))
        except WeightsChangedError as error:
            faults.append(Fault(path, f"another model is under the recorded name: {error}"))
            continue
        changed = [
            s for s in of_teacher if not _content_of(teacher, s).items() <= document_of(documents, s)["content"].items()
        ]
        if changed:
            what = "the model has its weights, but preprocesses otherwise than recorded in content"
            faults.append(Fault(f"{changed[0].folder}/{SIGNAL_FILE}", what))
        else:
            teachers[name] = teacher
    return teachers, faults


def _content_of(teacher: Teacher, signal: AnySignal) -> dict[str, Any]:
    """What decides its embeddings, but for the precision, which may be another one here."""
    content = teacher.image_content() if signal.kind == "image" else teacher.text_content()
    return {name: value for name, value in content.items() if name != "precision"}


def _load(name: str, document: dict[str, Any], moved: str | None) -> Teacher:
    """The teacher, refused by the sha256 of its weights before they are used. Raises `ModelError`."""
    config = recorded_config(name, document, _precision_here(document["content"].get("precision", "fp32")))
    if moved is not None:
        config = _moved(config, moved)
    try:
        size = int(document["model"].get("micro_batch") or 1)
        return load_teacher(name, config, device=resolve_device("auto"), batch_size=size)
    except WeightsChangedError:
        raise
    except ModelError as error:
        raise ModelError(f"{error}; say where it is now: --teacher {name}=PATH") from None


def _moved(config: TeacherConfig, where: str) -> TeacherConfig:
    """The same model at another place: a folder, an open_clip checkpoint, or any name that a recipe may give."""
    if config.kind == "transformers" or where.startswith(("local-dir:", "hf-hub:")):
        return config.model_copy(update={"model": where, "checkpoint": None, "revision": None})
    if Path(where).is_file():
        return config.model_copy(update={"model": config.model.partition(":")[0], "checkpoint": where})
    return config.model_copy(update={"model": f"local-dir:{where}", "checkpoint": None})


def _precision_here(recorded: Precision) -> Precision:
    """The recorded precision where this device has it, else fp32, which is nearer to the exact embedding."""
    try:
        autocast_dtype(recorded, resolve_device("auto"))
    except ModelError:
        return "fp32"
    return recorded
