"""What is tried of source and output before a build spends anything, over a real server and on disk."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reinforce.storage import ShardRef, StorageError, find_shards, open_store, preflight
from tests.s3_server import Fault, FaultyProxy, S3Server, use_test_credentials


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_test_credentials(monkeypatch)
    name = server.make_bucket(f"bucket-{abs(hash(request.node.nodeid))}")
    server.client().put_object(Bucket=name, Key="in/a.tar", Body=b"not much of a tar")
    return name


def keys(server: S3Server, bucket: str) -> set[str]:
    return {item["Key"] for item in server.client().list_objects_v2(Bucket=bucket)["Contents"]}


def shard(uri: str) -> ShardRef:
    return find_shards([uri])[1][0]


def test_a_good_store_is_left_as_it_was(server: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    source = shard(f"s3://{bucket}/in?endpoint_url={server.endpoint}")
    assert preflight([source], open_store(f"s3://{bucket}/out?endpoint_url={proxy.endpoint}")) is True
    assert keys(server, bucket) == {"in/a.tar"}
    assert len(proxy.requests) == 5


def test_probes_of_killed_runs_are_swept_and_nothing_else(server: S3Server, bucket: str) -> None:
    output = open_store(f"s3://{bucket}/out?endpoint_url={server.endpoint}")
    kept = ("runs/probe/part.jsonl", "runs/20260101-probe-1/part.jsonl", "probe-1", "runs/probe-1/part.jsonl")
    for path in ("runs/probe-0123456789abcdef", "runs/probe-old", *kept):
        output.put(path, b"1")
    assert preflight([], output) is True
    assert {info.path for info in output.list()} == set(kept)


def test_a_store_that_ignores_conditions_is_told_apart(server: S3Server, bucket: str) -> None:
    with FaultyProxy(server.endpoint, drop_headers=("If-None-Match",)) as proxy:
        output = open_store(f"s3://{bucket}/out?endpoint_url={proxy.endpoint}")
        assert preflight([], output) is False
        # The answer to the first creation is lost: what its repetition finds is still not taken for a refusal.
        proxy.plan("PUT", "reset_after")
        assert preflight([], output) is False
    assert keys(server, bucket) == {"in/a.tar"}


@pytest.mark.parametrize("faults", [["reset_after"], ["slow", "reset_after"], ["slow", "reset"], ["unavailable"]])
def test_a_bad_connection_does_not_change_the_answer(
    server: S3Server, proxy: FaultyProxy, bucket: str, faults: list[Fault]
) -> None:
    proxy.slow_s = 0.0
    proxy.plan("PUT", *faults)
    assert preflight([], open_store(f"s3://{bucket}/out?endpoint_url={proxy.endpoint}")) is True
    assert proxy.faults == []
    assert keys(server, bucket) == {"in/a.tar"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("GET", r"preflight: listing s3://BUCKET/out/runs\?endpoint_url=\S+ failed: access denied \(403 AccessDenied"),
        ("PUT", r"preflight: creating a probe under s3://BUCKET/out/runs\S+ failed: access denied \(403 AccessDenied"),
        (
            "POST",
            r"preflight: deleting s3://BUCKET/out/runs/probe-[0-9a-f]{16}\S+ failed: access denied \(AccessDenied\)",
        ),
    ],
)
def test_the_step_that_the_output_refuses_is_named(proxy: FaultyProxy, bucket: str, method: str, message: str) -> None:
    proxy.plan(method, "denied")
    with pytest.raises(StorageError, match=message.replace("BUCKET", bucket)) as caught:
        preflight([], open_store(f"s3://{bucket}/out?endpoint_url={proxy.endpoint}"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("s3://") == 1


def test_a_source_that_cannot_be_read_is_named(server: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    source = shard(f"s3://{bucket}/in?endpoint_url={proxy.endpoint}")
    output = open_store(f"s3://{bucket}/out?endpoint_url={server.endpoint}")
    proxy.plan("GET", "denied")
    named = rf"preflight: reading one byte of s3://{bucket}/in/a\.tar\S* failed: "
    with pytest.raises(StorageError, match=f"{named}access denied"):
        preflight([source], output)
    server.client().delete_object(Bucket=bucket, Key="in/a.tar")
    with pytest.raises(StorageError, match=f"{named}no such object"):
        preflight([source], output)


def test_a_missing_bucket_is_named(server: S3Server, bucket: str) -> None:
    with pytest.raises(StorageError, match=r"preflight: listing s3://not-there/out/runs\S* failed: no such bucket"):
        preflight([], open_store(f"s3://not-there/out?endpoint_url={server.endpoint}"))


def test_a_folder_goes_through_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(b"")
    source, output = shard(str(tmp_path / "in")), open_store(str(tmp_path / "out"), create=True)
    assert preflight([source], output) is True
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    (tmp_path / "in" / "a.tar").unlink()
    with pytest.raises(StorageError, match=r"reading one byte of file:///\S+/in/a\.tar failed: no such object"):
        preflight([source], output)


def read_only(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs").chmod(0o555)


def a_file(folder: Path) -> None:
    (folder / "runs").write_text("in the way")


@pytest.mark.parametrize(("obstacle", "reason"), [(read_only, "permission denied"), (a_file, "")])
def test_a_folder_that_takes_nothing_keeps_its_errno(
    tmp_path: Path, obstacle: Callable[[Path], None], reason: str
) -> None:
    if obstacle is read_only and os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    obstacle(tmp_path)
    with pytest.raises(StorageError, match=f"preflight: creating a probe under file:///.* failed: {reason}") as caught:
        preflight([], open_store(str(tmp_path)))
    assert caught.value.errno
