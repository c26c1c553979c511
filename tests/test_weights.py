"""Weights in a bucket, over a real server: fetched once per machine, whole, and the same model as on disk."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reinforce.config import TeacherConfig
from reinforce.storage import open_store
from reinforce.teachers import load_teacher
from reinforce.weights import ModelError, fetch, fetch_folder, load_open_clip, transformers_folder
from tests import models
from tests.s3_server import FaultyProxy, S3Server, use_test_credentials


@pytest.fixture
def bucket(server: S3Server, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_test_credentials(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return server.make_bucket(f"bucket-{abs(hash(request.node.nodeid))}")


def upload(server: S3Server, bucket: str, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            server.client().upload_file(str(path), bucket, f"{folder.name}/{path.relative_to(folder)}")


def downloads(proxy: FaultyProxy) -> list[str]:
    """Names of the files that were got."""
    gets = [request.path for request in proxy.requests if request.method == "GET" and "list-type" not in request.path]
    return sorted(path.rpartition("/")[2] for path in gets)


def call_at_once(expression: str) -> list[str]:
    """Evaluates an expression in two processes that begin at the same moment; what they print."""
    code = (
        f"from reinforce.weights import fetch, fetch_folder\nprint('ready', flush=True)\ninput()\nprint({expression})"
    )
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return printed


def test_two_processes_fetch_a_checkpoint_once(server: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    server.client().put_object(Bucket=bucket, Key="b.pt", Body=b"weights" * 1000)
    proxy.slow_s = 1.0
    proxy.plan("GET", "slow")
    paths = call_at_once(f"fetch('s3://{bucket}/b.pt?endpoint_url={proxy.endpoint}')")
    assert paths[0] == paths[1]
    assert Path(paths[0]).read_bytes() == b"weights" * 1000
    assert downloads(proxy) == ["b.pt"]
    assert list(Path(paths[0]).parent.glob("*.partial")) == []


def test_two_processes_fetch_a_folder_once(server: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    for name in ("a.json", "b.safetensors", "sub/c.txt"):
        server.client().put_object(Bucket=bucket, Key=f"m/{name}", Body=name.encode())
    # As S3's console makes folders.
    server.client().put_object(Bucket=bucket, Key="m/", Body=b"")
    server.client().put_object(Bucket=bucket, Key="m/sub/", Body=b"")
    proxy.slow_s = 0.5
    proxy.plan("GET", "slow", "slow", "slow")
    paths = call_at_once(f"fetch_folder('s3://{bucket}/m/?endpoint_url={proxy.endpoint}')")
    assert paths[0] == paths[1]
    found = {str(path.relative_to(paths[0])): path.read_text() for path in Path(paths[0]).rglob("*") if path.is_file()}
    assert found == {name: name for name in ("a.json", "b.safetensors", "sub/c.txt")}
    assert downloads(proxy) == ["a.json", "b.safetensors", "c.txt"]


def test_a_folder_that_changes_is_copied_as_it_is(server: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    store = open_store(f"s3://{bucket}/m?endpoint_url={server.endpoint}")
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors"):
        store.put(name, name.encode())
    model = f"local-dir:s3://{bucket}/m?endpoint_url={proxy.endpoint}"
    folder = fetch_folder(model)
    store.delete("model-2.safetensors")
    store.put("model-1.safetensors", b"all of it")
    proxy.requests.clear()
    assert fetch_folder(model) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model-1.safetensors"]
    assert (folder / "model-1.safetensors").read_bytes() == b"all of it"
    assert downloads(proxy) == ["model-1.safetensors"]


def test_an_open_clip_folder_in_a_bucket_is_the_same_teacher(server: S3Server, bucket: str, tmp_path: Path) -> None:
    local = models.save_open_clip(tmp_path / "clip")
    upload(server, bucket, tmp_path / "clip")
    remote = f"local-dir:s3://{bucket}/clip?endpoint_url={server.endpoint}"
    teachers = [
        load_teacher("t", TeacherConfig(model=model), device=torch.device("cpu"), batch_size=4)
        for model in (local, remote)
    ]
    (here, _), (there, _) = (teacher.embed_texts(["a photo of a cat"]) for teacher in teachers)
    assert here.tolist() == there.tolist()
    assert teachers[1].describe()["model"] == remote
    assert load_open_clip(remote).weights_sha256 == load_open_clip(local).weights_sha256


def test_a_transformers_folder_in_a_bucket_is_the_same_teacher(server: S3Server, bucket: str, tmp_path: Path) -> None:
    local = models.save_transformers_clip(tmp_path / "hf")
    upload(server, bucket, tmp_path / "hf")
    teachers = [
        load_teacher("t", TeacherConfig(kind="transformers", model=model), device=torch.device("cpu"), batch_size=4)
        for model in (local, f"s3://{bucket}/hf?endpoint_url={server.endpoint}")
    ]
    (here, _), (there, _) = (teacher.embed_texts(["a photo of the cat"]) for teacher in teachers)
    assert here.tolist() == there.tolist()
    assert teachers[0].describe()["weights_sha256"] == teachers[1].describe()["weights_sha256"]


def test_a_folder_of_this_machine_is_used_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "a model"
    models.save_transformers_clip(folder)
    assert fetch_folder(f"file://{tmp_path}/a%20model/") == folder
    assert load_open_clip_error(f"local-dir:file://{folder}").startswith(
        f"model local-dir:file://{folder}: no open_clip"
    )


def load_open_clip_error(model: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_open_clip(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors_name_the_model_as_it_was_given(server: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    open_store(f"s3://{bucket}/empty?endpoint_url={server.endpoint}").put("config.json", b"{}")
    query = f"?endpoint_url={proxy.endpoint}"
    for uri, message in {
        f"s3://{bucket}/nothing{query}": "no such folder",
        f"s3://no-bucket-here/x{query}": "no such bucket",
        f"s3://{bucket}/empty{query}": "holds no *.safetensors",
        "s4://bucket/x": "unknown scheme 's4'",
    }.items():
        with pytest.raises(ModelError) as caught:
            transformers_folder(uri, None)
        assert str(caught.value).startswith(f"model {uri}: ")
        assert message in str(caught.value)
    model = f"local-dir:s3://{bucket}/empty{query}"
    assert load_open_clip_error(model) == f"model {model}: no open_clip_config.json in that folder"
    with pytest.raises(ModelError, match=r"checkpoint s3://.*/none\.pt\S*: no such object"):
        fetch(f"s3://{bucket}/none.pt{query}")
    proxy.plan("GET", "denied")
    assert f"model {model}: cannot list s3://" in load_open_clip_error(model)


def test_a_cache_that_cannot_be_written_is_told(server: S3Server, bucket: str, tmp_path: Path) -> None:
    server.client().put_object(Bucket=bucket, Key="m/config.json", Body=b"{}")
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(ModelError, match=r"model s3://\S+: cannot write its copy \S*cache\S*: "):
        fetch_folder(f"s3://{bucket}/m?endpoint_url={server.endpoint}")
