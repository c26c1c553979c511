"""What an inspection found: frozen, plain numbers and short strings, ready for a table, a page or JSON."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from reinforce.inspection.corpus_figures import CorpusFigures

# Of this module's face.
from reinforce.inspection.measures import MOST_STEMS as MOST_STEMS
from reinforce.inspection.measures import Distribution as Distribution
from reinforce.inspection.measures import DropExample as DropExample
from reinforce.inspection.measures import DropFigures as DropFigures
from reinforce.inspection.measures import Missing as Missing


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is not what the dataset says it should be. `path` is below the dataset."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class SignalFigures:
    """One signal over all shards; `max_norm_error` is the largest |norm - 1| among the values that were read.

    `num_values` counts what is there and not null: embeddings, samples with captions, or images of a modality.
    """

    folder: str
    num_columns: int
    num_files: int
    missing: Missing
    num_bytes: int
    bytes_per_kept: float | None
    nulls: dict[str, int]
    num_truncated_texts: int
    max_norm_error: float | None
    num_values: int = 0
    reading: str | None = None
    """Of a modality, its suffix and range in words."""


@dataclass(frozen=True, slots=True)
class BankFigures:
    """A bank of labels, the teachers that have embedded it, those that have not, and the prompts they cut, if any."""

    name: str
    num_labels: int
    num_templates: int
    num_duplicates: int
    teachers: tuple[str, ...]
    missing_teachers: tuple[str, ...]
    num_truncated_texts: dict[str, int]


@dataclass(frozen=True, slots=True)
class CaptionFigures:
    """The captions of one source (`original` or a captioner) in the shards whose values were read."""

    source: str
    num_samples: int
    num_captions: int
    captions_per_sample: float
    words_min: int
    words_median: float
    words_max: int
    distinct_ratio: float
    most_frequent: tuple[tuple[str, int], ...]
    num_samples_without: int = 0
    """Samples with no caption of this source."""
    num_empty: int = 0
    """Captions without a word."""
    num_copies: int = 0
    """Captions of a captioner that are an original caption of the same sample, but for case, spaces and full stops."""
    words: Distribution | None = None


@dataclass(frozen=True, slots=True)
class CosineFigures:
    """Clean image to caption, over all pairs of a sample and one of its captions.

    `mismatched_mean` is the mean with every image beside the captions of the sample before it: what chance gives.
    """

    teacher: str
    source: str
    matched: Distribution
    mismatched_mean: float | None


@dataclass(frozen=True, slots=True)
class DriftFigures:
    """Augmented views to the clean one, over all samples and views; `by_view` has the mean of each of views 1..K.

    `mismatched_mean` is the mean of every clean view beside that of the sample before it: how alike any two images are.
    """

    teacher: str
    num_views: int
    cosine: Distribution
    by_view: tuple[float | None, ...] = ()
    mismatched_mean: float | None = None


@dataclass(frozen=True, slots=True)
class AgreementFigures:
    """Of the `num_neighbours` nearest images by one teacher's clean views, the mean share that another's agree on.

    `chance` is the share that two teachers who know nothing of each other would have.
    """

    teachers: tuple[str, str]
    num_images: int
    num_neighbours: int
    overlap: float
    chance: float


@dataclass(frozen=True, slots=True)
class SampleName:
    """Where a sample is."""

    stem: str
    key: str


@dataclass(frozen=True, slots=True)
class DuplicateFigures:
    """Images that look alike: a clean view's cosine to another's, by one teacher, is at least `threshold`.

    `num_duplicates` is the number of images that would go if one of each group stayed. `is_full`: all kept images were
    compared, else those of the sampled shards. `groups` are the largest, at most a few.
    """

    teacher: str
    threshold: float
    num_images: int
    num_groups: int
    num_duplicates: int
    is_full: bool
    groups: tuple[tuple[SampleName, ...], ...]


@dataclass(frozen=True, slots=True)
class RunFigures:
    """What one run did and cost, from its folder in `runs/`. `stages` are busy seconds, of all workers together.

    `end` is None while it runs, or if it was killed.
    """

    run: str
    start: str
    end: str | None
    elapsed_s: float
    num_workers: int
    num_shards: int
    num_failed: int
    num_samples: int
    stages: dict[str, float] = field(metadata={"json": "stages_s"})
    hardware: str
    num_sentences: int = 0
    """Of corpora; files of sentences are among the shards."""


@dataclass(frozen=True, slots=True)
class CostFigures:
    """What all runs cost together. Stages are busy seconds, of the runs that came to their end and said so.

    What a thousand take is told from runs that had nothing else: `num_timed_samples` are those of the runs without a
    sentence, which `stages_per_1000` divides the seconds of these by; `num_timed_sentences` of those without a sample.
    """

    num_runs: int
    num_samples: int
    num_timed_samples: int
    elapsed_s: float
    stages: dict[str, float] = field(metadata={"json": "stages_s"})
    stages_per_1000: dict[str, float] = field(metadata={"json": "stages_s_per_1000_samples"})
    num_sentences: int = 0
    num_timed_sentences: int = 0
    stages_per_1000_sentences: dict[str, float] = field(
        default_factory=dict, metadata={"json": "stages_s_per_1000_sentences"}
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything an inspection found.

    Shards, missing files and bytes of the dataset are exact. Samples, drops, nulls, truncated texts and bytes of the
    source are sums over the footers of `num_footer_shards`, scaled up to all shards if those are more. `captions`,
    `cosines`, `drifts`, `agreements`, norms and examples of nulls are of `num_sampled_samples` kept samples, the first
    ones of each of `sampled_stems`.
    """

    uri: str
    num_shards: int
    num_samples: int
    num_kept: int
    source_bytes: int
    spine_bytes: int
    total_bytes: int
    bytes_per_kept: float | None
    drops: tuple[DropFigures, ...]
    left_out: dict[str, int]
    signals: tuple[SignalFigures, ...]
    missing_shards: Missing | None
    """Source shards without a spine; None if no source was given to compare with."""
    failures: dict[str, str]
    problems: tuple[Problem, ...]
    sampled_stems: tuple[str, ...]
    captions: tuple[CaptionFigures, ...]
    cosines: tuple[CosineFigures, ...]
    drifts: tuple[DriftFigures, ...]
    agreements: tuple[AgreementFigures, ...] = ()
    duplicates: tuple[DuplicateFigures, ...] = ()
    banks: tuple[BankFigures, ...] = ()
    corpora: tuple[CorpusFigures, ...] = ()
    runs: tuple[RunFigures, ...] = ()
    null_examples: dict[str, dict[str, tuple[SampleName, ...]]] = field(default_factory=dict)
    """Signal folder -> reason -> a few samples with such a null in it."""
    incomplete: Missing = field(default_factory=lambda: Missing(0))
    """Shards with a spine that lack the file of at least one signal."""
    num_footer_shards: int = 0
    num_sampled_samples: int = 0
    num_failures: int = 0
    """Shards in `failures/`; the errors of the first 100 are in `failures`."""
    cost: CostFigures | None = None
    doubts: tuple[str, ...] = ()
    """What looks wrong, in words: not a fault of a file, but nothing one would expect of a good dataset."""

    @property
    def all_source_bytes(self) -> int:
        """Of shards and of files of sentences: what `total_bytes` is beside."""
        return self.source_bytes + sum(corpus.source_bytes for corpus in self.corpora)

    @property
    def is_estimated(self) -> bool:
        """Whether the sums over footers are scaled up."""
        return self.num_footer_shards < self.num_shards

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {item.metadata.get("json", item.name): _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
