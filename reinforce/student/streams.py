"""What a process of a run reads its batches from, where it is there, and how it goes on from a checkpoint."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from reinforce.config import StudentConfig
from reinforce.student.batch import Batch, Position
from reinforce.student.checkpoint import Progress, load_triplets
from reinforce.student.distributed import Processes
from reinforce.student.models import Student
from reinforce.student.plan import ReadPlan
from reinforce.student.reader import Placement, ReinforcedDataset, local_batch_size
from reinforce.student.sentences import SentenceStream
from reinforce.student.taken_bank import TakenBank
from reinforce.student.tokenizer import StudentTokenizer
from reinforce.student.triplet_reader import TripletReader


class Streams:
    """The images of one process, and what its loss reads beside them: triplets of its own, or sentences."""

    def __init__(
        self, config: StudentConfig, plan: ReadPlan, student: Student, bank: TakenBank | None, processes: Processes
    ) -> None:
        """Raises `ConfigError` for batches that cannot be shared out among the processes."""
        self._config, self._plan, self._student, self._processes = config, plan, student, processes
        self._local_batch_size = local_batch_size(config, processes.world_size)
        self._positions = [Position(worker) for worker in range(max(1, config.data.workers))]
        self._next_worker = 0
        self.triplets: TripletReader | None = None
        if config.loss.kind == "triplet" and bank is not None:
            self.triplets = TripletReader(plan, config, student, bank.bank, processes)
        self._sentences: SentenceStream | None = None
        if plan.sentences is not None:
            self._sentences = SentenceStream(plan.sentences, rank=processes.rank, world_size=processes.world_size)

    def go_on(self, progress: Progress, checkpoint: Path) -> None:
        """To where a checkpoint was."""
        rank = self._processes.rank
        self._positions = progress.positions[rank]
        self._next_worker = progress.next_workers[rank]
        if self.triplets is not None:
            self.triplets.mined = load_triplets(checkpoint)
        if self._sentences is not None:
            self._sentences.position = progress.sentences[rank]

    def places(self) -> tuple[list[Position], int, Position]:
        """For a checkpoint: where each worker goes on, the worker whose batch comes next, where sentences go on."""
        return self._positions, self._next_worker, self._sentences.position if self._sentences else Position()

    def note(self, position: Position) -> None:
        """Takes note that the batch with this position was taken."""
        self._positions[position.worker] = position
        self._next_worker = (position.worker + 1) % len(self._positions)

    @contextmanager
    def batches(self) -> Iterator[Iterator[Batch]]:
        """The batches from where the run is; what they hold is released at the end."""
        if self.triplets is not None:
            with closing(self.triplets.batches(self._positions[0])) as batches:
                yield batches
            return
        with self._images() as images:
            if self._sentences is None:
                yield images
            else:
                # After the workers of the images were forked: a fork takes no thread along.
                with closing(self._sentences.beside(images)) as batches:
                    yield batches

    @contextmanager
    def _images(self) -> Iterator[Iterator[Batch]]:
        processes = self._processes
        started = any(position != Position(position.worker) for position in self._positions)
        dataset = ReinforcedDataset(
            replace(self._plan, sentences=None),  # no worker reads them, and a selection of them may be large
            self._student.tokenizer or StudentTokenizer(context_length=8),
            batch_size=self._local_batch_size,
            image_size=self._student.image_size,
            placement=Placement(
                rank=processes.rank,
                world_size=processes.world_size,
                resume=tuple(self._positions) if started else (),
                next_worker=self._next_worker,
            ),
        )
        if self._plan.data.workers:
            yield iter(dataset.loader(pin_memory=processes.device.type == "cuda"))
        else:
            with closing(iter(dataset)) as batches:
                yield batches
