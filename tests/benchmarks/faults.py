"""Which faults `reinforce inspect --verify` finds in a dataset, and where it reports them.

    python -m tests.benchmarks.faults [--bits N]        (about a minute on one core)

A build of two shards with two small open_clip teachers and a captioner, then one fault at a time in a copy of it.
First single bits, flipped at random positions of all kinds of files, the source among them; then faults that somebody
could make on purpose or by accident, some with every digest computed again. The last table says how far a wrong cell is
from passing `--recompute`: cosines between cells that are not the same, of models with random weights.
"""

import argparse
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from reinforce.inspection.cells import Recomputation
from reinforce.inspection.faults import Fault, Verification
from reinforce.inspection.recompute import cosine_bound
from reinforce.inspection.verdict import line_of
from reinforce.inspection.verify import verify_dataset
from reinforce.runners.failures import record_failure
from reinforce.shards.dataset import open_dataset
from reinforce.storage import open_store
from tests.forgery import (
    build_small,
    captions_digest,
    flipped,
    forge_document,
    forge_file,
    kind_of,
    members_of_one,
    random_bits,
    with_column,
)
from tests.models import save_open_clip
from tests.tars import image_bytes, write_tar

ALL = Recomputation(10_000)
IMAGE = "embeddings/a/image/one.parquet"
CAPTIONS = "captions/fake/one.parquet"
TEXTS = [f"embeddings/{teacher}/text/fake/one.parquet" for teacher in "ab"]


@dataclass(frozen=True)
class Trial:
    """A fault, and how it is put into the copy in a folder that holds `dataset`, `source` and `models`."""

    name: str
    put: Callable[[Path], object]
    recompute: Recomputation | None = None


def swap_shards(folder: Path) -> None:
    one, two = folder / "dataset" / IMAGE, folder / "dataset/embeddings/a/image/sub/two.parquet"
    one.rename(folder / "swapped")
    two.rename(one)
    (folder / "swapped").rename(two)


def swap_teachers(folder: Path) -> None:
    one, two = (folder / "dataset" / path for path in TEXTS)
    one.rename(folder / "swapped")
    two.rename(one)
    (folder / "swapped").rename(two)


def swap_values(table: pa.Table) -> pa.Table:
    values = table.column("view_001").to_pylist()
    return with_column(table, "view_001", [values[1], values[0], *values[2:]])


def edit_caption(folder: Path) -> None:
    def edit(table: pa.Table) -> pa.Table:
        texts = table.column("captions").to_pylist()
        return with_column(table, "captions", [*texts[:3], ["two red cats", texts[3][1]], *texts[4:]])

    forge_file(folder / "dataset" / CAPTIONS, edit)


def edit_caption_and_digests(folder: Path) -> None:
    edit_caption(folder)
    digest = captions_digest(folder / "dataset" / CAPTIONS)
    for path in TEXTS:
        forge_file(folder / "dataset" / path, change_footer=lambda footer: footer.update(captions_sha256=digest))


def edit_original(folder: Path) -> None:
    def edit(table: pa.Table) -> pa.Table:
        return with_column(table, "captions", [["two red cats"], *table.column("captions").to_pylist()[1:]])

    forge_file(folder / "dataset/samples/one.parquet", edit)


def change_image(folder: Path) -> None:
    changed = [(name, image_bytes(9, 44, 30) if name == "k4.png" else data) for name, data in members_of_one()]
    write_tar(folder / "source/one.tar", changed)


def replace_teacher(folder: Path) -> None:
    shutil.rmtree(folder / "models/a")
    save_open_clip(folder / "models/a", seed=8)


def truncate(folder: Path) -> None:
    path = folder / "dataset" / IMAGE
    path.write_bytes(path.read_bytes()[:1000])


TRIALS = (
    Trial("files swapped between shards", swap_shards),
    Trial("files swapped between teachers", swap_teachers),
    Trial(
        "rows reordered, digest right",
        lambda folder: forge_file(folder / "dataset" / IMAGE, lambda table: table.take([0, 2, 1, 3, 4, 5])),
    ),
    Trial(
        "values reordered, digest right",
        lambda folder: forge_file(folder / "dataset" / IMAGE, swap_values),
        ALL,
    ),
    Trial("truncated object", truncate),
    Trial("caption edited, digest of its file right", edit_caption),
    Trial("caption edited, all digests right", edit_caption_and_digests, ALL),
    Trial("original caption edited, digest right", edit_original),
    Trial("source image changed", change_image),
    Trial("teacher replaced under its name", replace_teacher, ALL),
    Trial("file missing", lambda folder: (folder / "dataset" / IMAGE).unlink()),
    Trial("spine missing", lambda folder: (folder / "dataset/samples/one.parquet").unlink()),
    Trial(
        "policy of the views edited, digest right",
        lambda folder: forge_document(
            folder / "dataset/dataset.json", lambda doc: doc["view_policy"].update(num_ops=1)
        ),
    ),
)


def verified(folder: Path, recompute: Recomputation | None = None) -> Verification:
    return verify_dataset(str(folder / "dataset"), root=str(folder / "source"), recompute=recompute)


def flip_bits(folder: Path, num_bits: int) -> None:
    files = [path for part in ("dataset", "source") for path in (folder / part).rglob("*") if path.is_file()]
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    localised: Counter[str] = Counter()
    for path, position in random_bits(files, num_bits, seed=0):
        kind = kind_of(path)
        tried[kind] += 1
        is_ours = path.is_relative_to(folder / "dataset")
        where = str(path.relative_to(folder / "dataset")) if is_ours else path.as_uri()
        with flipped(path, position):
            faults = [fault for fault in verified(folder).faults if fault.path == where]
        found[kind] += bool(faults)
        localised[kind] += any(fault.column is not None or fault.key is not None for fault in faults)
    print("| bits flipped in | tried | found, in that file | down to column or sample |\n|---|---|---|---|")
    for kind in sorted(tried):
        print(f"| `{kind}` | {tried[kind]} | {found[kind]} | {localised[kind]} |")
    print(f"| all | {tried.total()} | {found.total()} | {localised.total()} |")


def try_faults(folder: Path) -> None:
    saved = Path(shutil.copytree(folder, folder.with_name("saved")))
    print("\n| fault | found | where the first of them is reported |\n|---|---|---|")
    for trial in TRIALS:
        trial.put(folder)
        faults = verified(folder, trial.recompute).faults
        option = f" (`--recompute {trial.recompute.num_cells}`)" if trial.recompute else ""
        print(f"| {trial.name}{option} | {_shown(faults, folder)} |")
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)


def _shown(faults: tuple[Fault, ...], folder: Path) -> str:
    if not faults:
        return "no | "
    line = line_of(faults[0]).replace(folder.as_uri(), "").replace(str(folder), "").replace("|", "\\|")
    return f"{len(faults)} | {line}"


def wrong_cells(folder: Path) -> None:
    dataset = open_dataset(str(folder / "dataset"))
    print("\n| embeddings | least cosine allowed | largest between different images | between views of one image |")
    print("|---|---|---|---|")
    for signal, document in dataset.signals.items():
        if signal.kind == "image":
            views = [dataset.numpy(signal, "one", name).astype(np.float64) for name in document["columns"]]
            views = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in views]
            images = views[0] @ views[0].T - 2 * np.eye(len(views[0]))
            of_one = max(float((one * other).sum(axis=1).max()) for one in views for other in views if one is not other)
            bound = cosine_bound(document["content"]["mantissa_bits"], document["model"]["dim"], "fp32")
            print(f"| `{signal.folder}` | {bound:.6f} | {images.max():.6f} | {of_one:.6f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "built"
        build_small(folder)
        record_failure(open_store(str(folder / "dataset")), "gone", ["is truncated"], "run")
        assert verified(folder, ALL).faults == (), "a clean dataset has no fault"
        flip_bits(folder, arguments.bits)
        try_faults(folder)
        wrong_cells(folder)


if __name__ == "__main__":
    main()
