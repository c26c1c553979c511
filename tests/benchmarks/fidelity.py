"""What rounding costs and saves: bytes a value and KL of the affinity softmax, by `mantissa_bits`.

    python -m tests.benchmarks.fidelity        (about 6 minutes on two cores)

4,096 CIFAR-10 images in 6 views and their captions, through both teachers of ../shared, kept in exact fp32; then stored
as format 1 does at each precision, and as DataCompDR stores: one gzipped torch.save of bfloat16 tensors a sample. KL is
that of S(u, v) against the rounded one, rows over the batch of 4,096, at the teacher's own scale and at 100.
"""

import gzip
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from reinforce.config import BuildConfig, load_recipe
from reinforce.decode import decode
from reinforce.plan import load_plan
from reinforce.shards.schema import embeddings_schema, round_mantissa, view_column
from reinforce.shards.source import SourceShard
from reinforce.shards.writer import ShardFileWriter, embeddings_batch
from reinforce.storage import open_store
from reinforce.teachers import Teacher
from reinforce.views.draw import draw, view_seed
from reinforce.views.render import render
from tests.benchmarks.truth import REPOSITORY, SHARED

NUM_IMAGES = 4096


def exact_embeddings(config: BuildConfig, teacher: Teacher) -> tuple[np.ndarray, np.ndarray]:
    """Image embeddings [views, images, dim] and caption embeddings [images, dim] in fp32."""
    samples = []
    for shard in sorted((SHARED / "data" / "cifar10" / "train").glob("*.tar")):
        samples += list(SourceShard(shard, config.source).samples())
    samples = samples[:NUM_IMAGES]
    views: list[list[np.ndarray]] = [[] for _ in range(config.views.count + 1)]
    for sample in samples:
        image = decode(sample.image, 10**9)
        assert isinstance(image, np.ndarray)
        seed = view_seed(config.seed, sample.key)
        for index, rendered in enumerate(views):
            view = draw(config.views.policy(), seed, index, image.shape[1], image.shape[0])
            rendered.append(render(image, view, teacher.image_size))
    images = np.stack([teacher.embed_images(np.stack(rendered)) for rendered in views])
    return images, teacher.embed_texts([sample.captions[0] for sample in samples])[0]


def kl(u: np.ndarray, v: np.ndarray, u2: np.ndarray, v2: np.ndarray, scale: float) -> float:
    """Mean over both directions and all rows of KL(softmax(scale u v^T) || softmax(scale u2 v2^T)), in float64."""
    total = 0.0
    for (a, b), (a2, b2) in (((u, v), (u2, v2)), ((v, u), (v2, u2))):
        for start in range(0, len(a), 512):
            rows = slice(start, start + 512)
            exact, rounded = (
                (scale * torch.from_numpy(x[rows]).double() @ torch.from_numpy(y).double().T).log_softmax(dim=1)
                for x, y in ((a, b), (a2, b2))
            )
            total += float((exact.exp() * (exact - rounded)).sum())
    return total / (2 * len(u))


def stored_bytes(images: np.ndarray, mantissa_bits: int) -> int:
    """Bytes of format 1's file of these image embeddings."""
    columns = {view_column(i): round_mantissa(rows, mantissa_bits) for i, rows in enumerate(images)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        writer = ShardFileWriter(path / "spool", embeddings_schema(list(columns), images.shape[2]))
        writer.append(embeddings_batch([f"{row:08d}" for row in range(images.shape[1])], columns))
        writer.commit(open_store(folder), "file.parquet", {"format_version": 1})
        return (path / "file.parquet").stat().st_size


def gzipped_bytes(images: np.ndarray, *, with_torch_save: bool) -> int:
    """Bytes of one gzip a sample of its bfloat16 tensor [views, dim]: of the values alone, or of torch.save's file."""
    total = 0
    for sample in torch.from_numpy(images).bfloat16().unbind(dim=1):
        data = sample.contiguous().view(torch.int16).numpy().tobytes()
        if with_torch_save:
            file = io.BytesIO()
            torch.save({"image_emb": sample.clone()}, file)
            data = file.getvalue()
        total += len(gzip.compress(data))
    return total


def main() -> None:
    config = load_recipe(str(REPOSITORY / "pipelines" / "cifar10.yaml")).build
    print("| teacher | stored as | bytes a value | KL at the teacher's scale | KL at 100 |\n|---|---|---|---|---|")
    for teacher in load_plan(config).teachers:
        images, texts = exact_embeddings(config, teacher)
        for name, num_bytes, rounded in stored_forms(images, texts):
            scales = (float(teacher.describe()["logit_scale"]), 100.0)
            divergences = [kl(images[0], texts, *rounded, scale) for scale in scales]
            figures = f"{num_bytes / images.size:.2f} | {divergences[0]:.1e} | {divergences[1]:.1e}"
            print(f"| {teacher.name} | {name} | {figures} |", flush=True)


def stored_forms(images: np.ndarray, texts: np.ndarray) -> Iterator[tuple[str, int, tuple[np.ndarray, np.ndarray]]]:
    """Every way of storing: its name, the bytes of all views, and clean views and texts as they come back."""
    for mantissa_bits in (10, 7, 4):
        image, text = (round_mantissa(rows, mantissa_bits).astype(np.float32) for rows in (images[0], texts))
        yield f"float16, mantissa_bits {mantissa_bits}", stored_bytes(images, mantissa_bits), (image, text)
    image, text = (torch.from_numpy(rows).bfloat16().float().numpy() for rows in (images[0], texts))
    for name, with_torch_save in (("bfloat16, gzip a sample", False), ("the same in torch.save's file", True)):
        yield name, gzipped_bytes(images, with_torch_save=with_torch_save), (image, text)


if __name__ == "__main__":
    main()
