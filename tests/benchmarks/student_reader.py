"""What stored signals cost a reader: samples a second, bytes, and decoding against one gzipped file a sample.

    python -m tests.benchmarks.student_reader               (about two minutes on two cores)

3,000 photographs of 256 px or more (those of ../shared, shrunk and repeated under keys of their own; generated ones
without it) in 4 shards; 10 views, an original and two synthetic captions, two teachers that give random directions of
768 dims. Small images are cheap to decode and short shards dear to open: both make the signals weigh more.
"""

import gzip
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from reinforce.captioners import FakeCaptioner
from reinforce.config import BuildConfig, DataConfig, SourceConfig
from reinforce.plan import BuildPlan
from reinforce.sample import Embeddings
from reinforce.shards.dataset import Dataset, open_dataset
from reinforce.shards.reader import to_numpy
from reinforce.shards.schema import caption_column, view_column
from reinforce.shards.source import SourceShard
from reinforce.storage.local import LocalFolder
from reinforce.student.choices import Visit, permutation
from reinforce.student.plan import plan_reading
from reinforce.student.reader import ReinforcedDataset
from reinforce.student.shard import open_shard
from reinforce.student.tokenizer import StudentTokenizer
from reinforce.teachers import FakeTeacher, TokenizedText
from tests.benchmarks.timing import RATIO, Costs, alternate
from tests.benchmarks.truth import SHARED
from tests.fakes import run
from tests.tars import encode, image_bytes, write_tar

NUM_SHARDS, SHARD_ROWS = 4, 750
NUM_ROWS = NUM_SHARDS * SHARD_ROWS
NUM_VIEWS, DIM = 10, 768
PUBLISHED_VIEWS, PUBLISHED_TEXTS = 30, 6
"""Of a sample of DataCompDR-12M (arXiv 2311.17049): 30 views; the original and 5 synthetic captions."""
BATCH_ROWS = 256
NUM_GZIPPED = 250
NUM_ROUNDS = 3


class RandomTeacher(FakeTeacher):
    """Gives random directions: as hard to compress as real embeddings, and as quick as none. Asks for tiny views."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, dim=DIM, image_size=16)
        self._generator = np.random.default_rng(seed)

    def embed_images(self, views: UInt8[np.ndarray, "rows size size 3"]) -> Embeddings:
        return self._directions(len(views))

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
        return self._directions(len(texts))

    def _directions(self, num_rows: int) -> Embeddings:
        rows = self._generator.standard_normal((num_rows, DIM), dtype=np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def photographs(shorter_side: int | None) -> Iterator[tuple[bytes, str]]:
    """JPEGs and their captions: those of ../shared, or generated ones, shrunk unless `shorter_side` is None."""
    shards = sorted((SHARED / "data" / "coco_mini").glob("*.tar"))
    found = [s for shard in shards for s in SourceShard(shard, SourceConfig(captions=("txt",))).samples()]
    samples = [(sample.image, sample.captions[0]) for sample in found]
    samples = samples or [(image_bytes(i, 640, 480, "JPEG"), f"generated picture {i}") for i in range(60)]
    for data, caption in samples:
        if shorter_side is None:
            yield data, caption
            continue
        image = Image.open(io.BytesIO(data)).convert("RGB")
        ratio = shorter_side / min(image.size)
        size = round(image.width * ratio), round(image.height * ratio)
        yield encode(image.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=90), caption


def write_photographs(folder: Path, found: Sequence[tuple[bytes, str]], num_shards: int, shard_rows: int) -> None:
    """Tars of photographs that repeat under keys of their own."""
    endless = enumerate(cycle(found))
    for shard in range(num_shards):
        members = []
        for index, (image, caption) in islice(endless, shard_rows):
            members += [(f"{index:06d}.jpg", image), (f"{index:06d}.txt", caption.encode())]
        write_tar(folder / f"{shard:05d}.tar", members)


def build(folder: Path) -> Path:
    """The source, and the dataset of it as `reinforce build` writes it; returns the dataset's folder."""
    found = list(photographs(shorter_side=256))
    write_photographs(folder / "source", found, NUM_SHARDS, SHARD_ROWS)
    config = {
        "views": {"count": NUM_VIEWS},
        "source": {"captions": ["txt"], "max_captions": 1},
        "batch_size": BATCH_ROWS,
        "workers": 2,
    }
    teachers = [RandomTeacher("teacher_a", 0), RandomTeacher("teacher_b", 1)]
    captioners = [FakeCaptioner("captioner", image_size=None, num_captions=2)]
    plan = BuildPlan(BuildConfig.model_validate(config), teachers, captioners)
    summary = run(plan, folder / "source", folder / "reinforced")
    assert not summary.failed
    image_kb = sum(len(image) for image, _ in found) / len(found) / 1000
    print(f"{NUM_ROWS:,} samples in {NUM_SHARDS} shards, {image_kb:.0f} kB an image\n", flush=True)
    return folder / "reinforced"


def print_speed(folder: Path, image_size: int, num_workers: int) -> None:
    """An epoch of the loader, with the signals and without: the same views and captions, in the same order."""

    def epoch(uses_teachers: bool) -> Callable[[], object]:
        data = DataConfig(workers=num_workers)
        reader = ReinforcedDataset(
            plan_reading(str(folder), data, uses_teachers=uses_teachers),
            StudentTokenizer(context_length=77),
            batch_size=BATCH_ROWS,
            image_size=image_size,
            epochs=1,
        )

        def read_all() -> None:
            assert sum(len(batch) for batch in reader.loader()) == NUM_ROWS

        return read_all

    # The workers of a side end with its epoch, so all their CPU time is in it.
    costs = alternate({"with": epoch(True), "without": epoch(False)}, NUM_ROUNDS, with_warm_up=False)

    def figures(cost: Costs) -> str:
        return f"{NUM_ROWS / cost.wall_s:,.0f} | {cost.cpu_s / NUM_ROWS * 1000:.2f} ms"

    both = f"{figures(costs['without'])} | {figures(costs['with'])}"
    # Samples a second are the inverse of time: how fast "with" is, in terms of "without".
    ratio = costs["without"].against(costs["with"])
    print(f"| {image_size} px | {num_workers} | {both} | {ratio} |", flush=True)


class CountingFile(io.FileIO):
    """A local file that counts the bytes it hands out."""

    def __init__(self, path: Path, counts: Counter[str], kind: str) -> None:
        super().__init__(path)
        self._counts, self._kind = counts, kind

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size)
        self._counts[self._kind] += len(data)
        return data


class CountingFolder(LocalFolder):
    """A folder that counts what is read of its objects, by the kind of file."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.counts: Counter[str] = Counter()

    def open_input(self, path: str, *, size: int | None = None) -> BinaryIO:
        parts = path.split("/")
        kind = parts[2] if parts[0] == "embeddings" else parts[0]
        file = self.local_path(path)
        assert file is not None
        return cast(BinaryIO, CountingFile(file, self.counts, kind))


def print_bytes(folder: Path) -> None:
    """Bytes of embedding files read in an epoch, counted as they are read, against reading all that is stored."""
    plan = plan_reading(str(folder), DataConfig())
    opened, store = open_dataset(str(folder)), CountingFolder(str(folder))
    stored: Counter[str] = Counter()
    for stem in plan.stems:
        open_shard(plan, Dataset(store, opened.document), Visit(0, stem), folder.parent / "source" / f"{stem}.tar")
        for signal in opened.signals:
            with opened.open(signal, stem) as file:
                stored[signal.kind] += opened.sizes[signal.file(stem)]
                stored["view"] += file.num_bytes.get(view_column(1), 0)
    read = {kind: count / NUM_ROWS for kind, count in store.counts.items()}
    all_here, view = (stored["image"] + stored["text"]) / NUM_ROWS, stored["view"] / NUM_ROWS
    read_here = read["image"] + read["text"]
    # The footer, kilobytes even for 31 columns, comes with the last 64 kB of a file: more views change nothing read.
    all_of_30 = all_here + view * (PUBLISHED_VIEWS - NUM_VIEWS)
    print("\n| embeddings of two teachers, bytes a sample | a view, two captions | all views, 3 captions | ratio |")
    print("|---|---|---|---|")
    print(f"| {NUM_VIEWS} views stored, counted | {read_here:,.0f} | {all_here:,.0f} | {read_here / all_here:.3f} |")
    print(
        f"| {PUBLISHED_VIEWS} views stored, extrapolated | {read_here:,.0f} | {all_of_30:,.0f} "
        f"| {read_here / all_of_30:.3f} |\n"
    )


def gzipped_sample(teacher: RandomTeacher) -> bytes:
    """All embeddings of a sample as DataCompDR-12M-bf16 stores them: torch.save, gzip at its level 9."""

    def rows(num_rows: int) -> Tensor:
        both = [teacher.embed_tokens(teacher.tokenize([""] * num_rows)) for _ in range(2)]
        return torch.from_numpy(np.concatenate(both, axis=1)).bfloat16()

    file = io.BytesIO()
    torch.save({"image_emb": rows(PUBLISHED_VIEWS), "text_emb": rows(PUBLISHED_TEXTS)}, file)
    return gzip.compress(file.getvalue())


def read_columns(dataset: Dataset, stem: str, keys: pa.Array) -> list[Tensor]:
    """A view and two captions of both teachers for a shard, in shuffled batches, as the reader takes them."""
    columns = []
    for teacher in ("teacher_a", "teacher_b"):
        wanted = {"image": view_column(1), "text/original": caption_column(0), "text/captioner": caption_column(1)}
        for kind, column in wanted.items():
            table = dataset.table(f"embeddings/{teacher}/{kind}", stem, ["key", column])
            assert table.column("key").combine_chunks().equals(keys)
            columns.append(to_numpy(table.column(column)))
    order = permutation(len(keys), 0)
    batches = [order[start : start + BATCH_ROWS] for start in range(0, len(keys), BATCH_ROWS)]
    return [torch.from_numpy(np.stack([column[row] for row in batch])) for batch in batches for column in columns]


def read_gzipped(samples: list[bytes]) -> list[Tensor]:
    """The same of the same number of samples, from a gzipped file each, already in memory."""
    rows = []
    for data in islice(cycle(samples), SHARD_ROWS):
        tensors = torch.load(io.BytesIO(gzip.decompress(data)), weights_only=True)
        rows.append(torch.stack([tensors["image_emb"][1], tensors["text_emb"][0], tensors["text_emb"][2]]))
    return [torch.stack(rows[start : start + BATCH_ROWS]) for start in range(0, len(rows), BATCH_ROWS)]


def print_decoding(folder: Path) -> None:
    dataset = open_dataset(str(folder))
    stem = dataset.stems[0]
    keys = dataset.spine(stem).column("key").combine_chunks()
    samples = [gzipped_sample(RandomTeacher("teacher", seed)) for seed in range(NUM_GZIPPED)]
    sides: dict[str, Callable[[], object]] = {
        f"ours: 6 columns of a shard of {SHARD_ROWS}": lambda: read_columns(dataset, stem, keys),
        f"a gzipped torch.save a sample, {len(samples[0]):,} bytes": lambda: read_gzipped(samples),
    }
    costs = alternate(sides, num_rounds=7)
    ours, gzipped = costs.values()
    print("| embeddings of a view and two captions, two teachers | CPU a sample | wall a sample |\n|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost.cpu_s / SHARD_ROWS * 1000:.4f} ms | {cost.wall_s / SHARD_ROWS * 1000:.4f} ms |")
    print(f"\nThe gzipped take times ours: {gzipped.against(ours)} ({RATIO})")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = build(Path(temporary))
        print_decoding(folder)
        print_bytes(folder)
        print(f"Ratio: how fast with signals is, of without; {RATIO}\n")
        columns = "samples/s without | CPU a sample | samples/s with | CPU a sample | ratio"
        print(f"| images | workers | {columns} |\n|---|---|---|---|---|---|---|")
        for image_size in (224, 64):
            for num_workers in (1, 2):
                print_speed(folder, image_size, num_workers)


if __name__ == "__main__":
    main()
