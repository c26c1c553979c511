"""The batches of a run that is trained on triplets: mined from the student anew for each epoch, then walked through.

An epoch is one pass over the anchors that mining leaves. Before it every sample's clean view is read and embedded,
which costs a forward pass of the data. A batch has the rows that `TripletLoss` wants.
"""

from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

import numpy as np
from jaxtyping import Int32, Int64

from reinforce.config import ConfigError, StudentConfig
from reinforce.formatting import format_counts
from reinforce.shards.banks import Bank
from reinforce.storage import open_spool
from reinforce.student.batch import Batch, Position
from reinforce.student.choices import permutation
from reinforce.student.distributed import Processes
from reinforce.student.examine import embedding_model
from reinforce.student.groups import ReadError
from reinforce.student.mining import Triplets, mine
from reinforce.student.models import Student
from reinforce.student.plan import ReadPlan
from reinforce.student.random_access import Indices, RandomAccess, check_plan, open_samples
from reinforce.student.stopwatch import Stopwatch

_EMBEDDED_AT_ONCE = 64


class TripletReader:
    """The endless batches of a run of one process. `student` is the one that is trained, `bank` that of the loss.

    `mined` are the triplets of the epoch of the last batch: with them a run goes on with the very next one. Raises
    `ConfigError` for data or processes that do not serve.
    """

    def __init__(
        self, plan: ReadPlan, config: StudentConfig, student: Student, bank: Bank, processes: Processes
    ) -> None:
        if processes.world_size > 1:
            raise ConfigError("student.loss.kind: triplet trains in one process; start it without torchrun")
        check_plan(plan)
        self._plan = plan
        self._config = config
        self._image_size = student.image_size
        self._model = embedding_model(student, processes.device)
        self._bank = bank
        self.mined: Triplets | None = None

    def batches(self, start: Position) -> Generator[Batch]:
        """From a position on, of which `group` is the epoch and `row` its step; then `mined` must be of that epoch.

        Where mining leaves nothing, an epoch has the triplets of the one before. Raises `ReadError` where it leaves
        nothing in the first, or an image that was read for mining is damaged now.
        """
        with (
            open_spool() as spool,
            closing(open_samples(self._plan, self._image_size, self._bank, spool)) as samples,
        ):
            epoch, first, left_out, clock = start.group, start.row, +samples.counts, Stopwatch()
            if self.mined is not None and first and self.mined.samples_sha256 != samples.sha256():
                raise ReadError(
                    f"{self._plan.dataset_uri}: other samples than those that the triplets of epoch {epoch} were mined "
                    "of (a shard is missing now, or was then); bring back what is missing, or begin without --resume"
                )
            while True:
                clock.start()
                if self.mined is None or first == 0:
                    self.mined, not_loaded = self._mine(samples, epoch)
                    left_out += not_loaded + self.mined.skipped
                    clock.lap("mine")
                steps = self._steps(self.mined, epoch)[first:]
                for number, (loaded, batch) in enumerate(samples.read(steps, walk=epoch)):
                    if len(loaded) < len(steps[number]):
                        reasons = format_counts(batch.counts)
                        raise ReadError(
                            f"images that could be read when epoch {epoch} was mined cannot be now ({reasons}); mend "
                            "them and go on with --resume, or begin without it"
                        )
                    position = Position(0, epoch, first + number + 1)
                    yield replace(batch, position=position, counts=left_out, reader_s=batch.reader_s | clock.take())
                    left_out = Counter[str]()
                epoch, first = epoch + 1, 0

    def _mine(self, samples: RandomAccess, epoch: int) -> tuple[Triplets, Counter[str]]:
        """The triplets of an epoch by the student as it is now, and what could not be loaded."""
        loss, counts = self._config.loss, Counter[str]()
        embeddings = np.zeros((len(samples), self._bank.embeddings.shape[1]), np.float32)
        labels: Int32[np.ndarray, " samples"] = np.full(len(samples), -1, np.int32)
        everyone = np.arange(len(samples))
        chunks = [everyone[start : start + _EMBEDDED_AT_ONCE] for start in range(0, len(samples), _EMBEDDED_AT_ONCE)]
        with self._model.evaluating():
            # Of every modality, though one is embedded: a sample that lacks another is in no triplet.
            for loaded, batch in samples.read(chunks, walk=None):
                counts += batch.counts
                if len(loaded):
                    embeddings[loaded] = self._model.embed_images(batch.images.permute(0, 2, 3, 1).numpy())
                    labels[loaded] = samples.labels[loaded]
        mined = mine(
            embeddings,
            labels,
            margin=loss.margin,
            num_negatives=loss.num_negatives,
            seed=self._config.seed,
            epoch=epoch,
        )
        mined = replace(mined, samples_sha256=samples.sha256())
        if not len(mined) and self.mined is not None:
            # The student tells all labels apart for now; ending here would leave the recipe's steps untaken.
            mined = replace(self.mined, skipped=mined.skipped)
        if not len(mined):
            names = [self._bank.labels[label] for label in np.unique(labels[labels >= 0])]
            reason = _why_none(names, counts, mined.skipped, loss.margin)
            raise ReadError(f"mining left no triplet of {len(samples):,} samples: {reason}")
        return mined, counts

    def _num_steps(self, mined: Triplets) -> int:
        return -(-len(mined) // self._config.batch_size)

    def _steps(self, mined: Triplets, epoch: int) -> list[Indices]:
        """The samples of each step, in the order of `TripletLoss`: every anchor once, the last step filled up anew."""
        size = self._config.batch_size
        order = np.resize(permutation(len(mined), self._config.seed, "anchors", epoch), self._num_steps(mined) * size)
        return [_rows(mined, order[start : start + size]) for start in range(0, len(order), size)]


def _rows(mined: Triplets, chosen: Int64[np.ndarray, " anchors"]) -> Indices:
    negatives = mined.negatives[chosen].T.reshape(-1)
    return np.concatenate([mined.anchors[chosen], mined.positives[chosen], negatives])


def _why_none(labels: list[str], not_loaded: Counter[str], skipped: Counter[str], margin: float) -> str:
    """Why there is no triplet of samples of these labels, and what to do; a larger margin makes none of one label."""
    if not labels:
        return f"none could be loaded ({format_counts(not_loaded)})"
    reasons = f"({format_counts(not_loaded + skipped)})"
    if len(labels) == 1:
        return f"all have the label {labels[0]} {reasons}; select samples of at least two labels"
    if skipped.keys() == {"no_positive"}:
        return f"no label has two of them {reasons}; select more"
    return (
        f"{reasons[1:-1]}; raise student.loss.margin (now {margin:g}), or start from a student that tells labels apart"
    )
