"""Builds on a real Ray cluster of several nodes on this machine."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reinforce.config import BuildConfig, ConfigError
from reinforce.shards.banks import read_bank
from reinforce.shards.dataset import DatasetMismatchError
from reinforce.storage import open_store
from tests.benchmarks.ray_s3 import build_both, different
from tests.clusters import CONFIG, FailingWorker, NodeBoundWorker, RayNodes, load_fakes, run_on_ray
from tests.fakes import files_of, run
from tests.s3_server import serve_s3
from tests.tars import pairs, write_tar

pytestmark = pytest.mark.timeout(300)


def write_shards(folder: Path, stems: str | list[str], num_samples: int = 9) -> Path:
    for index, stem in enumerate(stems):
        write_tar(folder / f"{stem}.tar", pairs(num_samples, start=100 * index))
    return folder


def write_texts(folder: Path) -> Path:
    """Two files of sentences, one longer than a batch, with a sentence that is too long."""
    folder.mkdir()
    (folder / "long.txt").write_text("".join(f"sentence {index}\n" for index in range(599)))
    (folder / "short.jsonl").write_text('{"text": "one"}\n' + json.dumps({"text": "x" * 31}))
    return folder


def events(output: Path, kind: str) -> list[dict]:
    lines = [line for path in sorted(output.glob("runs/*/*.jsonl")) for line in path.read_text().splitlines()]
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def built_here(source: Path, output: Path, config: dict[str, Any] | None = None) -> dict[str, bytes]:
    run(load_fakes(BuildConfig.model_validate(CONFIG | (config or {}))), source, output)
    return files_of(output)


def test_good_bad_faulty_and_deadly_shards(cluster: RayNodes, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", [*"abcdef", "deadly", "faulty"])
    (source / "bad.tar").write_bytes(b"<html>")
    texts = write_texts(tmp_path / "texts")
    (texts / "cut.txt.gz").write_bytes(b"<html>")
    config = {"modalities": {"depth": "depth.png"}, "corpora": {"web": {"files": str(texts), "max_characters": 30}}}
    output = tmp_path / "out"
    summary = run_on_ray(source, output, config=config)
    # What is good is done, with the bytes of a local build; what is not is given up, each for its own reason.
    assert sorted(summary.failed) == ["bad", "corpora/web/cut", "deadly", "faulty"]
    assert summary.done.num_samples == 6 * 9, "also of a shard whose report died with its worker"
    assert (summary.done.num_sentences, summary.done.num_kept_sentences) == (601, 600)
    for stem in ("bad", "deadly", "faulty"):
        (source / f"{stem}.tar").unlink()
    (texts / "cut.txt.gz").unlink()
    # A worker may die while it commits the shard before; the next start sweeps what that leaves, as here.
    open_store(str(output)).sweep_temporaries()
    data = {path: content for path, content in files_of(output).items() if not path.startswith("failures/")}
    assert data == built_here(source, tmp_path / "local", config)
    attempts = {stem: json.loads((output / f"failures/{stem}.json").read_text())["attempts"] for stem in summary.failed}
    assert len(attempts["bad"]) == 1, "bad input is not tried again"
    assert attempts["faulty"] == ["RuntimeError: this shard cannot be captioned"] * 3
    assert len(attempts["deadly"]) == 3
    assert all("worker died" in reason for reason in attempts["deadly"])
    assert len({event["node"] for event in events(output, "failed") if event["stem"] == "faulty"}) == 2
    # Nothing is computed again. A bank that is all that is missing is written by a worker that starts for it.
    banks = {"things": {"labels": ["cat", "boat"]}, "more": {"labels": ["sky", "Sky"]}}
    again = run_on_ray(source, output, config=config | {"banks": banks})
    assert (again.num_complete_before, again.done.num_files) == (8, 0)
    assert again.banks == ("bank more: 1 label x 1 template, written for large, small; 1 repeated label left out",)
    assert read_bank(str(output / "banks" / "more"), "small").labels == ("sky",)
    # What failed can be named.
    write_shards(source, ["faulty"])
    again = run_on_ray(source, output, config=config, retry_failed=True)
    assert (again.num_shards, list(again.failed)) == (1, ["faulty"])


def test_a_worker_that_makes_no_progress_is_replaced(cluster: RayNodes, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", ["a", "b", "c-endless"])
    shown = io.StringIO()
    summary = run_on_ray(
        source,
        tmp_path / "out",
        config={"ray": {"num_cpus": 1, "stall_timeout_s": 6}},
        console=Console(file=shown, width=200),
    )
    assert summary.failed == {"c-endless": "no progress for 6 s in captioner"}
    assert "shard c-endless failed (attempt 1, worker worker-" in shown.getvalue()
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 2


def test_another_recipe_is_refused(cluster: RayNodes, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "ab")
    run_on_ray(source, tmp_path / "out")
    with pytest.raises(DatasetMismatchError, match=r"spine\.seed is 0 there and 7 in this recipe"):
        run_on_ray(source, tmp_path / "out", config={"seed": 7})
    write_shards(tmp_path / "in", "c")
    with pytest.raises(ConfigError, match=r"num_views is 3 there and 5 in this recipe"):
        run_on_ray(source, tmp_path / "out", config={"views": {"count": 4, "hflip": 0.5}})


@pytest.mark.parametrize("worker_class", [NodeBoundWorker, FailingWorker])
def test_a_black_hole_node_costs_no_shard(cluster: RayNodes, tmp_path: Path, worker_class: type) -> None:
    source = write_shards(tmp_path / "in", [f"slow-{index:02d}" for index in range(10)])
    broken = cluster.add(2, broken=1)
    try:
        summary = run_on_ray(source, tmp_path / "out", worker_class=worker_class)
    finally:
        cluster.remove(-1)
    assert summary.failed == {}
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 10
    ends = events(tmp_path / "out", "worker_lost")
    lost = [event["node"] for event in ends if event["reason"] != "its node is gone"]  # of an earlier test
    assert lost == [broken] * len(lost)
    assert 1 <= len(lost) <= 3, "two slots: after two losses the node gets no more workers"


def test_two_drivers_waste_work_and_corrupt_nothing(cluster: RayNodes, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "abcdef", num_samples=20)
    command = [sys.executable, "-m", "tests.chaos", cluster.address, str(source), str(tmp_path / "out"), "1"]
    drivers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [driver.communicate(timeout=200)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], errors
    assert files_of(tmp_path / "out") == built_here(source, tmp_path / "local")
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2


def test_s3_through_profiles_leaves_no_secret_behind(
    cluster: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ("AKIAEXAMPLEKEYID1234", "s3cr3t/ThatMustNotBe+Seen0123456789abcdef", "FwoGZXIvYXdzEXAMPLETOKEN")
    with serve_s3() as server:
        use_profiles(monkeypatch, tmp_path, server.endpoint, secrets)
        for bucket in ("ray-source", "ray-target"):
            server.make_bucket(bucket)
        source = write_shards(tmp_path / "in", "abcd")
        for path in source.glob("*.tar"):
            server.client().upload_file(str(path), "ray-source", f"shards/{path.name}")
        server.client().put_object(Bucket="ray-source", Key="shards/bad.tar", Body=b"<html>")
        shown = io.StringIO()
        with watched_processes() as seen:
            target = "s3://ray-target/dataset?profile=out"
            summary = run_on_ray("s3://ray-source/shards?profile=in", target, console=Console(file=shown))
        assert list(summary.failed) == ["bad"]
        store = open_store(target)
        objects = {info.path: store.read(info.path) for info in store.list()}
    (source / "bad.tar").write_bytes(b"<html>")
    expected = built_here(source, tmp_path / "local")
    data = [name for name in expected if name.endswith(".parquet") or name.endswith("signal.json")]
    assert {name: objects[name] for name in data} == {name: expected[name] for name in data}
    left = [*objects.values(), shown.getvalue().encode(), *seen]
    import ray

    session = Path(ray.get_runtime_context().get_session_name())
    logs = [path for path in (Path("/tmp/ray") / session).rglob("*") if path.is_file()]
    assert len(logs) > 10
    left += [path.read_bytes() for path in logs]
    assert not [secret for secret in secrets if any(secret.encode() in data for data in left)]
    assert any(b"s3://ray-source" in data for data in left), "the search finds what is there"


def use_profiles(monkeypatch: pytest.MonkeyPatch, folder: Path, endpoint: str, secrets: tuple[str, ...]) -> None:
    """Profiles `in` and `out`, known to this process only: the nodes of the cluster started without them."""
    config, credentials = folder / "config", folder / "credentials"
    profile = f"region = us-east-1\nendpoint_url = {endpoint}\n"
    config.write_text("".join(f"[profile {name}]\n{profile}" for name in ("in", "out")))
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    secret = "".join(f"{name} = {value}\n" for name, value in zip(names, secrets, strict=True))
    credentials.write_text("".join(f"[{name}]\n{secret}" for name in ("in", "out")))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))


@contextmanager
def watched_processes() -> Iterator[set[bytes]]:
    """The arguments and the environments of all Ray processes that run meanwhile."""
    seen: set[bytes] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.5):
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    arguments = (folder / "cmdline").read_bytes()
                    if b"ray" in arguments:
                        seen.update((arguments, (folder / "environ").read_bytes()))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    is_over.set()
    thread.join()
    assert any(b"ray::FakeWorker" in arguments for arguments in seen)


def test_real_teachers_on_a_cluster_from_s3_write_the_bytes_of_a_local_build(
    cluster: RayNodes, shared: Path, tmp_path: Path
) -> None:
    shards = sorted((shared / "data" / "cifar10" / "test").glob("*.tar"))
    there, here, printed = build_both(shards, tmp_path, cluster.address, "--limit-samples", "20")
    assert "2 of 2 shards complete" in printed
    assert different(there, here) == []
    assert len(there) == 2 + 4 + 2 * 5
