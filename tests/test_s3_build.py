"""A build over a real HTTP S3 server: the same bytes as on disk, and no secret in anything it leaves behind."""

import logging
import sys
from pathlib import Path

import pytest

import reinforce
from reinforce import storage
from tests.fakes import fake_plan, files_of, run
from tests.s3_server import S3Server
from tests.tars import image_bytes, pairs, write_tar

KEY_ID = "AKIAEXAMPLEKEYID1234"
SECRET = "s3cr3t/ThatMustNotBe+Seen0123456789abcdef"
TOKEN = "FwoGZXIvYXdzEXAMPLETOKEN"


@pytest.fixture
def server(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """The server as profiles `in` and `out`."""
    config = tmp_path / "config"
    profiles = [f"[profile {name}]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n" for name in ("in", "out")]
    config.write_text("".join(profiles))
    credentials = tmp_path / "credentials"
    secret = f"aws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\naws_session_token = {TOKEN}\n"
    credentials.write_text("".join(f"[{name}]\n{secret}" for name in ("in", "out")))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    for bucket in ("source-bucket", "target-bucket"):
        server.make_bucket(bucket)
    return server


def objects(uri: str) -> dict[str, bytes]:
    store = storage.open_store(uri)
    return {info.path: store.read(info.path) for info in store.list()}


def test_s3_to_s3_is_the_local_build_and_keeps_its_secrets(
    server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for stem in ("a", "folder/b"):
        members = [*pairs(7, start=len(stem)), (f"{len(stem):05d}.ir.png", image_bytes(9))]
        path = write_tar(tmp_path / "in" / f"{stem}.tar", members)
        server.client().upload_file(str(path), "source-bucket", f"shards/{stem}.tar")
    server.client().put_object(Bucket="source-bucket", Key="shards/bad.tar", Body=b"<html>")
    source, target = "s3://source-bucket/shards?profile=in", "s3://target-bucket/dataset?profile=out"
    config = {"modalities": {"thermal": "ir.png"}}
    summary = run(fake_plan(config), source, target)
    assert list(summary.failed) == ["bad"]
    run(fake_plan(config), tmp_path / "in", tmp_path / "local")
    remote, local = objects(target), files_of(tmp_path / "local")
    runs = {name: data for name, data in remote.items() if name.startswith("runs/")}
    assert runs
    assert b"folder/b" in b"".join(runs.values())
    data = {name: content for name, content in remote.items() if name.endswith(".parquet")}
    assert data == {name: content for name, content in local.items() if name.endswith(".parquet")}
    # What another run finds is complete, and reads back over the network.
    assert run(fake_plan(config), source, target).done.num_samples == 0
    dataset = reinforce.open_dataset(target)
    assert dataset.read("folder/b", ["embeddings/large/image"]).num_rows == 7
    assert dataset.table("modalities/thermal", "a").column("null_reason").to_pylist() == [None] + ["no_modality"] * 6
    seen = capfd.readouterr()
    left = [*remote.values(), seen.out.encode(), seen.err.encode(), caplog.text.encode(), " ".join(sys.argv).encode()]
    for secret in (SECRET, TOKEN, KEY_ID):
        assert not any(secret.encode() in text for text in left)


def test_a_server_that_rejects_us_is_one_line_without_secrets(server: S3Server) -> None:
    with pytest.raises(storage.StorageError) as raised:
        run(fake_plan(), "s3://no-such-bucket/x?profile=in", "s3://target-bucket/d?profile=out")
    assert "\n" not in str(raised.value)
    assert not any(secret in str(raised.value) for secret in (SECRET, TOKEN, KEY_ID))


def test_secrets_in_a_uri_are_refused_unseen() -> None:
    with pytest.raises(storage.StorageError) as raised:
        storage.open_store(f"s3://bucket/x?secret_access_key={SECRET}")
    assert SECRET not in str(raised.value)
