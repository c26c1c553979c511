"""CIFAR-10 in a bucket, built by the command line on a Ray cluster of three nodes, against a local build of it.

    python -m tests.benchmarks.ray_s3 [--limit-samples N]

Real teachers, a real HTTP S3 server. Every file must be the same byte for byte; `dataset.json` may differ in where the
source is, and in nothing else.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from reinforce.storage import open_store
from tests.chaos import environment
from tests.clusters import environ, ray_nodes
from tests.fakes import files_of
from tests.s3_server import serve_s3

RECIPE = Path(__file__).parents[2] / "pipelines" / "cifar10.yaml"


def build_both(
    shards: Sequence[Path], folder: Path, address: str, *options: str
) -> tuple[dict[str, bytes], dict[str, bytes], str]:
    """The files of a build on the cluster from S3 to S3, those of a local build, and what the former printed.

    The cluster's nodes know nothing of the store: what the driver knows travels to its workers.
    """
    source = folder / "in"
    source.mkdir()
    for shard in shards:
        (source / shard.name).symlink_to(shard)
    with serve_s3() as server:
        for bucket in ("cifar10-source", "cifar10-output"):
            server.make_bucket(bucket)
        for shard in shards:
            server.client().upload_file(str(shard), "cifar10-source", f"shards/{shard.name}")
        with environ(environment(server.endpoint, 0)):
            remote = ("s3://cifar10-source/shards", "s3://cifar10-output/dataset", "--ray", address)
            printed = _build(*remote, *options)
            store = open_store("s3://cifar10-output/dataset")
            there = {info.path: store.read(info.path) for info in store.list() if not info.path.startswith("runs/")}
    _build(str(source), str(folder / "local"), *options)
    return there, files_of(folder / "local"), printed


def different(there: dict[str, bytes], here: dict[str, bytes]) -> list[str]:
    """The files that are in one dataset only, or not the same in both."""
    found = sorted(there.keys() ^ here.keys())
    for path in sorted(there.keys() & here.keys()):
        ours, theirs = here[path], there[path]
        if path == "dataset.json":
            ours, theirs = (
                json.dumps(json.loads(data) | {"source_root": "", "sha256": ""}).encode() for data in (ours, theirs)
            )
        found += [path] if ours != theirs else []
    return found


def _build(shards: str, output: str, *options: str) -> str:
    command = [sys.executable, "-m", "reinforce", "build", "--shards", shards, "--output", output]
    command += ["--recipe", str(RECIPE), "--set", "build.workers=1", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit-samples", type=int)
    args = parser.parse_args()
    shards = sorted((Path(__file__).parents[3] / "shared" / "data" / "cifar10" / "train").glob("*.tar"))
    options = ["--limit-samples", str(args.limit_samples)] if args.limit_samples else []
    with tempfile.TemporaryDirectory() as folder, ray_nodes(1, 1) as cluster:
        started_s = time.monotonic()
        there, here, printed = build_both(shards, Path(folder), cluster.address, *options)
        print(printed.strip())
        print(
            f"{len(there)} files, different: {different(there, here) or 'none'}; {time.monotonic() - started_s:.0f} s"
        )


if __name__ == "__main__":
    main()
