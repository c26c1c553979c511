"""What a build will write and what decides its content: the documents and fingerprints of every file.

A fingerprint covers what changes the bytes and nothing else: never a path, a hub name, a URI, a worker, a thread or a
batch size. So a dataset moved, or a teacher fetched from elsewhere, is still the same.
"""

import platform
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch

from reinforce.captioners import Captioner, load_captioner
from reinforce.config import BuildConfig, ConfigError
from reinforce.corpus_plan import CorpusOutline, SentenceSignal
from reinforce.selection import Selection
from reinforce.shards.dataset import DATASET_FILE, SIGNAL_FILE, create_or_compare
from reinforce.shards.schema import (
    FORMAT_VERSION,
    MODALITY_SCHEMA,
    Signal,
    caption_column,
    fingerprint,
    spine_file,
    split_corpus_stem,
    view_column,
)
from reinforce.software import versions
from reinforce.storage import Store
from reinforce.teachers import Teacher, load_teacher
from reinforce.weights import resolve_device

ORIGINAL = "original"
_MODALITIES_STAY = (
    "A dataset has the modalities that it was begun with: use the same build.modalities, or another --output"
)
_RANGE_STAYS = "Use the same build.modalities; a student may be given another range by student.data.modality_ranges"


@dataclass(frozen=True)
class SignalPlan:
    """One signal of a build: who computes it, what decides its content, its columns."""

    signal: Signal
    model: Teacher | Captioner | None
    """None of a modality: what its file says is read off the source."""
    content: dict[str, Any]
    columns: tuple[str, ...]

    @property
    def teacher(self) -> Teacher:
        assert self.signal.kind in ("image", "text")
        return cast(Teacher, self.model)

    @property
    def captioner(self) -> Captioner:
        assert self.signal.kind == "captions"
        return cast(Captioner, self.model)

    @property
    def needs_source(self) -> bool:
        """Whether the source tar is needed, or what the dataset holds already is enough."""
        if self.signal.kind == "captions":
            return self.captioner.image_size is not None or self.captioner.field is not None
        return self.signal.kind != "text"

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.content)

    def document(self) -> dict[str, Any]:
        """The content of `signal.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "signal": self.signal.folder,
            "fingerprint": self.fingerprint,
            "content": self.content,
            "columns": list(self.columns),
            "model": self.model.describe() if self.model else None,
        }


class BuildOutline:
    """What a recipe says of a build before any model is loaded: which files there will be, and what the spines hold."""

    def __init__(
        self, config: BuildConfig, *, selection: Selection | None = None, limit_samples: int | None = None
    ) -> None:
        self.config = config
        self.policy = config.views.policy()
        self.num_views = config.views.count + 1
        self.selection = selection
        self.limit_samples = limit_samples

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return tuple(self.config.teachers)

    @cached_property
    def wanted(self) -> tuple[Signal, ...]:
        """Every signal of the recipe, captions before the embeddings made from them."""
        found = [Signal("modality", name) for name in self.config.modalities]
        found += [Signal("captions", name) for name in self.config.captioners]
        sources = [*([ORIGINAL] if self.config.source.max_captions else []), *self.config.captioners]
        for name in self.config.teachers:
            found += [Signal("image", name), *(Signal("text", name, source) for source in sources)]
        return tuple(found)

    @cached_property
    def corpora(self) -> dict[str, CorpusOutline]:
        """The recipe's corpora, by name."""
        return {
            name: CorpusOutline(name, corpus, self.teacher_names, self.limit_samples)
            for name, corpus in self.config.corpora.items()
        }

    def corpus_of(self, stem: str) -> CorpusOutline | None:
        """The corpus that a source file of sentences is of, None for a shard of images."""
        is_corpus = bool(self.corpora) and stem.startswith("corpora/")
        return self.corpora[split_corpus_stem(stem)[0]] if is_corpus else None

    def files_of(self, stem: str) -> list[str]:
        """What the dataset has of a shard, the spine first."""
        corpus = self.corpus_of(stem)
        return corpus.files_of(stem) if corpus else [spine_file(stem), *(s.file(stem) for s in self.wanted)]

    def is_complete(self, stem: str, existing: Collection[str]) -> bool:
        """Whether all files of a shard are among the `existing` ones of the dataset."""
        return all(path in existing for path in self.files_of(stem))

    @cached_property
    def spine_content(self) -> dict[str, Any]:
        """What decides the spine: the seed, the source options, and what was selected."""
        return {
            "format_version": FORMAT_VERSION,
            "seed": self.config.seed,
            "source": self.config.source.model_dump(mode="json"),
            "selection_sha256": self.selection.sha256 if self.selection else None,
            "limit_samples": self.limit_samples,
        }

    @cached_property
    def spine_fingerprint(self) -> str:
        return fingerprint(self.spine_content)

    def record_dataset(self, output: Store, source_root: str) -> None:
        """Creates `dataset.json`, or compares; raises `DatasetMismatchError`."""
        document = {
            "format_version": FORMAT_VERSION,
            "spine_fingerprint": self.spine_fingerprint,
            "spine": self.spine_content,
            "view_policy": self.policy.model_dump(mode="json"),
            "source_root": source_root,
            "created_with": software(),
        }
        advice = {"spine.source.modalities": _MODALITIES_STAY}
        create_or_compare(output, DATASET_FILE, document, ["format_version", "spine", "view_policy"], advice)


class BuildPlan(BuildOutline):
    """A recipe with its models loaded: every signal the build is to write."""

    def __init__(
        self,
        config: BuildConfig,
        teachers: Sequence[Teacher],
        captioners: Sequence[Captioner],
        *,
        selection: Selection | None = None,
        limit_samples: int | None = None,
    ) -> None:
        super().__init__(config, selection=selection, limit_samples=limit_samples)
        if not teachers and not captioners:
            raise ConfigError("build.teachers: empty; a build needs at least one teacher or captioner")
        self.teachers = tuple(teachers)
        self.captioners = tuple(captioners)
        self.load_s = 0.0
        """Seconds that loading the models took, compiling them and writing banks included."""
        self.device = resolve_device(config.device)
        # A stream of its own: in the teachers' one every token would wait for a whole pass of theirs.
        self.caption_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return tuple(teacher.name for teacher in self.teachers)

    @cached_property
    def wanted(self) -> tuple[Signal, ...]:
        """Every signal of the recipe, as the models that are loaded give them."""
        return tuple(self.signals)

    @cached_property
    def signals(self) -> dict[Signal, SignalPlan]:
        """Every signal of the recipe, captions before the embeddings made from them."""
        written = [self._captions(captioner) for captioner in self.captioners]
        captions = {plan.signal.model: plan for plan in written}
        plans = [*(self._modality(name) for name in self.config.modalities), *written]
        for teacher in self.teachers:
            plans.append(self._image(teacher))
            if self.config.source.max_captions:
                plans.append(self._text(teacher, ORIGINAL, self.spine_fingerprint, self.config.source.max_captions))
            for captioner in self.captioners:
                source = captions[captioner.name].fingerprint
                plans.append(self._text(teacher, captioner.name, source, captioner.num_captions))
        return {plan.signal: plan for plan in plans}

    @cached_property
    def sentence_signals(self) -> dict[str, tuple[SentenceSignal, ...]]:
        """What teachers will say of each corpus, by its name."""
        return {
            name: tuple(SentenceSignal(corpus, teacher) for teacher in self.teachers)
            for name, corpus in self.corpora.items()
        }

    def micro_batches(self) -> dict[str, int]:
        """The micro-batch of each model that has had to halve it, by name."""
        models: tuple[Teacher | Captioner, ...] = (*self.teachers, *self.captioners)
        halved: dict[str, int] = {}
        for model in models:
            if model.micro_batch is not None and model.micro_batch < self.config.batch_size:
                # A teacher and a captioner may have one name.
                halved[model.name] = min(model.micro_batch, halved.get(model.name, model.micro_batch))
        return halved

    def record_signals(self, output: Store) -> None:
        """Creates each `signal.json`, or compares; raises `DatasetMismatchError`."""
        for plan in self.signals.values():
            compared = ["format_version", "content", "columns"]
            advice = {"content.range": _RANGE_STAYS}
            create_or_compare(output, f"{plan.signal.folder}/{SIGNAL_FILE}", plan.document(), compared, advice)
        for signals in self.sentence_signals.values():
            for signal in signals:
                signal.record(output)

    def _modality(self, name: str) -> SignalPlan:
        content = {"spine": self.spine_fingerprint, **self.config.modalities[name].model_dump(mode="json")}
        return SignalPlan(Signal("modality", name), None, content, tuple(MODALITY_SCHEMA.names[1:]))

    def _captions(self, captioner: Captioner) -> SignalPlan:
        content = {"spine": self.spine_fingerprint, **captioner.content()}
        return SignalPlan(Signal("captions", captioner.name), captioner, content, ("captions",))

    def _image(self, teacher: Teacher) -> SignalPlan:
        content = {
            "spine": self.spine_fingerprint,
            "view_policy": self.policy.model_dump(mode="json"),
            "num_views": self.num_views,
            **teacher.image_content(),
        }
        columns = tuple(view_column(view) for view in range(self.num_views))
        return SignalPlan(Signal("image", teacher.name), teacher, content, columns)

    def _text(self, teacher: Teacher, source: str, source_fingerprint: str, num_captions: int) -> SignalPlan:
        content = {"captions": source_fingerprint, "num_captions": num_captions, **teacher.text_content()}
        columns = tuple(caption_column(caption) for caption in range(num_captions))
        return SignalPlan(Signal("text", teacher.name, source), teacher, content, columns)


def load_plan(
    config: BuildConfig, *, selection: Selection | None = None, limit_samples: int | None = None
) -> BuildPlan:
    """Loads the models of a recipe onto its device. Raises `ModelError`."""
    start = time.perf_counter()
    torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    size = config.batch_size
    teachers = [
        load_teacher(name, model, device=device, batch_size=size, compiled=config.compile)
        for name, model in config.teachers.items()
    ]
    captioners = [
        load_captioner(name, model, device=device, batch_size=size) for name, model in config.captioners.items()
    ]
    plan = BuildPlan(config, teachers, captioners, selection=selection, limit_samples=limit_samples)
    plan.load_s = time.perf_counter() - start
    return plan


def views_by_size(missing: Sequence[SignalPlan], num_views: int) -> dict[int, int]:
    """How many views are needed at each size: all for a teacher's images, the clean one for a captioner."""
    sizes: dict[int, int] = {}
    for plan in missing:
        size = plan.model.image_size if plan.model else None
        if plan.signal.kind != "text" and size is not None:
            sizes[size] = max(sizes.get(size, 0), num_views if plan.signal.kind == "image" else 1)
    return sizes


def software() -> dict[str, str]:
    """Versions of what a dataset's bytes depend on."""
    packages = ("numpy", "Pillow", "pyarrow", "torch", "open_clip_torch", "transformers")
    return {"python": platform.python_version(), **versions(*packages)}
