"""From what a few samples cost to what all shards take: plain arithmetic on a trial.

In a worker three things go on at one time: the models and the writing (one thread), decode and render (a pool), the
fetching of the next shard. A shard takes as long as the slowest of them; shards go to workers longest first.
"""

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from reinforce.plan import BuildOutline
from reinforce.runners.excerpt import SPINE, num_eligible
from reinforce.runners.trial import Trial, Trials, Work
from reinforce.runners.worker import Lease

STAGES = ("fetch", "decode", "render", "captioner", "teachers", "write")
MODELS, PREPARE, WRITE, FETCH = "the models", "decode and render", "writing", "fetching"
_NUM_WORKERS = (1, 8, 64)


@dataclass(frozen=True)
class MissingSentences:
    """What is left to do of a corpus, and what it takes. Files and their bytes are counted, all else is estimated."""

    corpus: str
    num_files: int
    num_bytes: int
    """Of all files, compressed as they are."""
    num_missing: int
    bytes_missing: int
    """Of the files of which something is missing."""
    is_stored: bool = False
    """Whether the bytes are those of the sentences in the dataset, since there are no source files any more."""
    num_sentences: int = 0
    """Kept ones, of the files of which something is missing."""
    teachers_s: float = 0.0
    """Seconds in which one worker's teachers embed them."""
    bytes_written: int = 0
    num_tried: int = 0
    device: str = ""


@dataclass(frozen=True)
class Forecast:
    """What is left to do of a build, and what it takes. Shards and objects are counted, all else is estimated.

    Corpora come on top: `corpora` tells of them, and no other figure does.
    """

    num_shards: int
    num_missing: int
    """Shards of which something is missing; all that follows is of these."""
    num_samples: int = 0
    num_kept: int = 0
    bytes_read: int = 0
    """Of source tars."""
    bytes_written: int = 0
    num_objects: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)
    """Busy seconds by stage, added up over workers and threads."""
    start_s: float = 0.0
    """Of each worker, once: until its models are loaded and the pipeline is full."""
    wall_s: dict[int, float] = field(default_factory=dict)
    """By number of workers, from when the first model begins to load."""
    num_workers: int = 1
    """As many as were asked for, but no more than there are shards."""
    price_per_hour: float | None = None
    """Of one worker."""
    cores_per_device: float | None = None
    """Cores that decode and render as fast as the models of one worker go; None if there is nothing for them."""
    num_prepare: int = 0
    """Threads of a worker that decode and render."""
    bottleneck: str = ""
    device: str = ""
    num_tried: int = 0
    """Samples of the trial."""
    num_tried_shards: int = 0
    trial_s: float = 0.0
    corpora: tuple[MissingSentences, ...] = ()

    def cost(self, num_workers: int) -> float | None:
        """What so many workers cost until the last has done, in the currency of the price."""
        if self.price_per_hour is None:
            return None
        return num_workers * self.wall_s[num_workers] / 3600 * self.price_per_hour


@dataclass(frozen=True)
class _ShardCost:
    """What one shard takes."""

    num_samples: float
    num_kept: float
    bytes_read: int
    bytes_written: float
    stage_s: dict[str, float]
    busy_share: float

    def lanes(self, num_prepare: int) -> dict[str, float]:
        """Seconds of what goes on at one time."""
        spent = self.stage_s
        models_s = spent["captioner"] + spent["teachers"]
        prepare_s = (spent["decode"] + spent["render"]) / num_prepare
        threads = {MODELS: models_s, PREPARE: prepare_s, WRITE: spent["write"]}
        return {name: seconds / self.busy_share for name, seconds in threads.items()} | {FETCH: spent["fetch"]}


def extrapolate(
    outline: BuildOutline,
    works: Sequence[Work],
    trials: Trials,
    *,
    num_shards: int,
    max_workers: int | None = None,
    price_per_hour: float | None = None,
) -> Forecast:
    """What all shards of the works take, if they are like those tried."""
    costs = [_cost(outline, work, lease, trials) for work in works for lease in work.shards]
    stage_s, lanes = Counter[str](), Counter[str]()
    for cost in costs:
        stage_s.update(cost.stage_s)
        lanes.update(cost.lanes(trials.num_prepare))
    bottleneck = max(lanes, key=lambda name: lanes[name])
    start_s = trials.load_s + _fill_s(outline, trials, bottleneck) + stage_s["fetch"] / len(costs)
    durations = sorted((max(cost.lanes(trials.num_prepare).values()) for cost in costs), reverse=True)
    asked = min(max_workers or 1, len(costs))
    numbers = sorted({min(number, len(costs)) for number in (*_NUM_WORKERS, asked)})
    devices_s = stage_s["captioner"] + stage_s["teachers"]
    return Forecast(
        num_shards,
        len(costs),
        num_samples=round(sum(cost.num_samples for cost in costs)),
        num_kept=round(sum(cost.num_kept for cost in costs)),
        bytes_read=sum(cost.bytes_read for cost in costs),
        bytes_written=round(sum(cost.bytes_written for cost in costs)) + sum(trials.document_bytes.values()),
        num_objects=sum(len(work.folders) * len(work.shards) for work in works) + len(trials.document_bytes),
        stage_s={stage: stage_s[stage] for stage in STAGES},
        start_s=start_s,
        wall_s={number: start_s + _makespan_s(durations, number) for number in numbers},
        num_workers=asked,
        price_per_hour=price_per_hour,
        cores_per_device=(stage_s["decode"] + stage_s["render"]) / devices_s if devices_s else None,
        num_prepare=trials.num_prepare,
        bottleneck=bottleneck,
        device=trials.device,
        num_tried=sum(trial.num_samples for trial in trials.trials),
        num_tried_shards=sum(trial.num_shards for trial in trials.trials),
        trial_s=trials.elapsed_s,
    )


def extrapolate_sentences(
    corpus: MissingSentences, trials: Trials, *, limit_samples: int | None = None
) -> MissingSentences:
    """What all files of the corpus that lack something take, if they are like those tried."""
    trial = next((trial for trial in trials.sentences if trial.corpus == corpus.corpus), None)
    if trial is None:
        return corpus
    number = trial.kept_per_byte * corpus.bytes_missing
    if limit_samples is not None:
        number = min(number, limit_samples * corpus.num_missing)
    tried = max(1, trial.num_tried)
    return replace(
        corpus,
        num_sentences=round(number),
        teachers_s=trial.teachers_s / tried * number,
        bytes_written=round(trial.bytes_written / tried * number),
        num_tried=trial.num_tried,
        device=trials.device,
    )


def _cost(outline: BuildOutline, work: Work, lease: Lease, trials: Trials) -> _ShardCost:
    trial = _closest(work, trials)
    num_samples = lease.size * trial.samples_per_byte
    # A spine that is there has left out already what a selection or a limit leaves out.
    eligible = num_eligible(outline, lease.stem, num_samples) if SPINE in trial.folders else num_samples
    num_kept = eligible * trial.kept_share
    padded = math.ceil(round(num_kept) / outline.config.batch_size) * outline.config.batch_size
    stage_s = {
        "fetch": trial.fetch_s_per_byte * lease.size,
        "decode": trial.decode_s * eligible,
        "render": trial.render_s * eligible,
        "captioner": trial.captioner_s * padded,
        "teachers": trial.teachers_s * padded,
        "write": trial.write_s * num_kept + trial.commit_s,
    }
    num_bytes = 0.0
    for folder in work.folders:
        num_rows = num_samples if folder == SPINE else num_kept
        # Of a folder that this trial has not written, what another one has.
        of = next((other for other in (trial, *trials.trials) if folder in other.folders), None)
        num_bytes += of.sizes[folder].at(num_rows) if of else 0
    bytes_read = lease.size if trial.needs_source else 0
    return _ShardCost(num_samples, num_kept, bytes_read, num_bytes, stage_s, trial.busy_share)


def _closest(work: Work, trials: Trials) -> Trial:
    """The trial of this work, or of the one that differs from it in the fewest files."""
    return min(trials.trials, key=lambda trial: len(trial.folders ^ work.folders))


def _fill_s(outline: BuildOutline, trials: Trials, bottleneck: str) -> float:
    """Seconds in which the pipeline is not full yet, or not any more, beyond the work that is counted by the sample.

    Where the models set the pace that is their wait for the first batch, and their warming up; else the last batch.
    """
    trial = trials.trials[0]
    size = outline.config.batch_size
    batch_s = size * (trial.captioner_s + trial.teachers_s) / trial.busy_share
    return max(0.0, trial.first_batch_s - batch_s) if bottleneck == MODELS else batch_s


def _makespan_s(durations: Sequence[float], num_workers: int) -> float:
    """Seconds until the last of so many workers has done, each taking the longest shard that is left."""
    workers = [0.0] * num_workers
    for duration in durations:
        heapq.heapreplace(workers, workers[0] + duration)
    return max(workers)
