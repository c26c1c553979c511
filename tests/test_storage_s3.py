"""S3 over HTTP when it goes wrong: broken connections, unreachable endpoints, refused requests, wrong settings."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reinforce.storage import StorageError, Store, clients, open_store
from tests.s3_server import (
    ACCESS_KEY,
    SECRET_KEY,
    Fault,
    FaultyProxy,
    S3Server,
    make_certificate,
    use_test_credentials,
)


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_test_credentials(monkeypatch)
    return server.make_bucket(f"bucket-{abs(hash(request.node.nodeid))}")


@pytest.fixture
def behind_proxy(proxy: FaultyProxy, bucket: str) -> Store:
    return open_store(f"s3://{bucket}/p?endpoint_url={proxy.endpoint}")


def one_line_without_secrets(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    for secret in (SECRET_KEY, ACCESS_KEY):
        assert secret not in text
        assert secret not in repr(error)
    return text


def test_parquet_reads_only_the_columns_it_needs(proxy: FaultyProxy, behind_proxy: Store, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    noise = {f"column_{index}": pa.array([os.urandom(1000) for _ in range(500)]) for index in range(10)}
    pq.write_table(pa.table(noise), tmp_path / "t.parquet", row_group_size=100)
    behind_proxy.put_if_absent("t.parquet", tmp_path / "t.parquet")
    proxy.requests.clear()
    table = pq.ParquetFile(behind_proxy.open_input("t.parquet")).read(columns=["column_3"])
    assert table.column("column_3").equals(pa.chunked_array(noise["column_3"]))
    fetched = sum(request.bytes_sent for request in proxy.requests)
    assert 500_000 < fetched < 800_000 < (tmp_path / "t.parquet").stat().st_size / 5


@pytest.mark.parametrize("fault", ["reset", "reset_after", "error", "error_after", "conflict"])
def test_a_lost_put_is_repeated_and_counts_as_done(proxy: FaultyProxy, behind_proxy: Store, fault: Fault) -> None:
    proxy.plan("PUT", fault, fault)
    assert behind_proxy.put_if_absent("x", b"content") is True
    assert behind_proxy.read("x") == b"content"
    assert proxy.faults == []
    assert behind_proxy.put_if_absent("x", b"content") is False


def test_a_lost_put_does_not_claim_what_another_wrote(
    proxy: FaultyProxy, behind_proxy: Store, server: S3Server, bucket: str
) -> None:
    server.client().put_object(Bucket=bucket, Key="p/x", Body=b"of another writer")
    proxy.plan("PUT", "reset")
    assert behind_proxy.put_if_absent("x", b"mine") is False
    assert behind_proxy.read("x") == b"of another writer"


def test_a_lost_overwrite_is_repeated(proxy: FaultyProxy, behind_proxy: Store) -> None:
    proxy.plan("PUT", "reset", "error")
    behind_proxy.put("x", b"content")
    assert behind_proxy.read("x") == b"content"


@pytest.mark.parametrize("fault", ["reset", "error", "truncate", "shorten"])
def test_a_broken_download_is_repeated(proxy: FaultyProxy, behind_proxy: Store, tmp_path: Path, fault: Fault) -> None:
    content = os.urandom(300_000)
    behind_proxy.put("x", content)
    proxy.plan("GET", fault)
    assert behind_proxy.download("x", tmp_path / "target", size=len(content)) == len(content)
    assert (tmp_path / "target").read_bytes() == content
    assert proxy.faults == []


def test_reads_survive_broken_connections(proxy: FaultyProxy, behind_proxy: Store) -> None:
    content = os.urandom(300_000)
    behind_proxy.put("x", content)
    faults: tuple[Fault, ...] = ("reset", "error", "truncate")
    for fault in faults:
        proxy.plan("GET", fault)
        assert behind_proxy.read("x") == content
        proxy.plan("GET", fault)
        assert behind_proxy.read_range("x", 100, 200_000) == content[100:200_100]
        proxy.plan("GET", fault)
        assert [info.path for info in behind_proxy.list()] == ["x"]


def test_a_download_that_stays_short_is_an_error(proxy: FaultyProxy, behind_proxy: Store, tmp_path: Path) -> None:
    behind_proxy.put("x", b"x" * 1000)
    shortened: list[Fault] = ["shorten"] * 20
    proxy.plan("GET", *shortened)
    with pytest.raises(StorageError, match="500 of 1000 bytes") as caught:
        behind_proxy.download("x", tmp_path / "target", size=1000)
    assert "p/x" in one_line_without_secrets(caught.value)
    assert not (tmp_path / "target").exists()
    proxy.faults.clear()
    proxy.plan("GET", "shorten")
    with (
        behind_proxy.open_input("x", size=1000) as file,
        pytest.raises(StorageError, match="500 of 1000 bytes"),
    ):
        file.read()


def test_an_unreachable_endpoint_is_told_in_one_line(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/p?endpoint_url=http://127.0.0.1:9")
    attempts: list[Callable[[], object]] = [
        lambda: list(store.list()),
        lambda: store.put_if_absent("x", b"1"),
        lambda: store.download("x", tmp_path / "target"),
    ]
    with ThreadPoolExecutor(len(attempts)) as pool:  # each of them is patient for some seconds
        running = [pool.submit(attempt) for attempt in attempts]
    for attempt in running:
        with pytest.raises(StorageError, match=r"cannot reach 127\.0\.0\.1:9; check endpoint_url") as caught:
            attempt.result()
        assert f"s3://{bucket}/p" in one_line_without_secrets(caught.value)
        assert caught.value.__cause__ is None


def test_patience_before_the_first_answer_is_bounded() -> None:
    longest_try_s = max(clients.CONNECT_TIMEOUT_S, clients.FIRST.stall_timeout_s)
    assert clients.FIRST.deadline_s + longest_try_s < 25


def test_refusals_of_the_server_are_told_in_one_line(proxy: FaultyProxy, behind_proxy: Store, server: S3Server) -> None:
    missing = open_store(f"s3://no-such-bucket-here?endpoint_url={server.endpoint}")
    for attempt in (lambda: list(missing.list()), lambda: missing.put("x", b"1")):
        with pytest.raises(StorageError, match="no such bucket") as caught:
            attempt()
        one_line_without_secrets(caught.value)
    errors: list[Fault] = ["error"] * 50
    proxy.plan("GET", *errors)
    with pytest.raises(StorageError, match="answered 500 Fault") as caught:
        behind_proxy.read("x")
    one_line_without_secrets(caught.value)


def write_profiles(folder: Path, monkeypatch: pytest.MonkeyPatch, config: str, names: list[str]) -> None:
    credentials = "".join(f"[{n}]\naws_access_key_id={n.upper()}KEY\naws_secret_access_key=x\n" for n in names)
    (folder / "config").write_text(config)
    (folder / "credentials").write_text(credentials)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))


def test_profiles_bring_their_endpoint_region_and_keys(
    bucket: str, server: S3Server, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyProxy(server.endpoint) as other:
        config = (
            f"[profile a]\nregion=eu-west-3\nendpoint_url={proxy.endpoint}\n"
            f"[profile b]\nregion=eu-west-1\nservices=mine\n[services mine]\ns3 =\n  endpoint_url={other.endpoint}\n"
        )
        write_profiles(tmp_path, monkeypatch, config, ["a", "b"])
        source, output = open_store(f"s3://{bucket}/in?profile=a"), open_store(f"s3://{bucket}/out?profile=b")
        source.put("x", b"1")
        output.put_if_absent("x", source.read("x"))
        assert output.read("x") == b"1"
        assert open_store(f"{output.uri}").uri_of("x") == f"s3://{bucket}/out/x?profile=b"
        seen = [{request.authorization.split("/aws4")[0] for request in p.requests} for p in (proxy, other)]
    for (authorization,), key, region in zip(seen, ("AKEY", "BKEY"), ("eu-west-3", "eu-west-1"), strict=True):
        assert f"Credential={key}/" in authorization
        assert authorization.endswith(f"/{region}/s3")


def test_the_uri_wins_over_the_environment(bucket: str, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    store = open_store(f"s3://{bucket}/p?endpoint_url={server.endpoint}")
    store.put("x", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    assert open_store(f"s3://{bucket}/p").read("x") == b"1"


def test_an_anonymous_store_signs_nothing(proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no AWS credentials found"):
        list(open_store(f"s3://{bucket}?endpoint_url={proxy.endpoint}").list())
    assert list(open_store(f"s3://{bucket}?endpoint_url={proxy.endpoint}&anonymous=true").list()) == []
    assert [request.authorization for request in proxy.requests] == [""]


def test_wrong_settings_are_named(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"profile.*nobody.*AWS_CONFIG_FILE"):
        list(open_store(f"s3://{bucket}?profile=nobody").list())
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    with pytest.raises(StorageError, match=r"cannot read AWS_CA_BUNDLE .*missing\.pem"):
        list(open_store(f"s3://{bucket}").list())


def test_a_forked_child_is_refused_instead_of_waiting_for_ever(behind_proxy: Store) -> None:
    behind_proxy.put("x", b"1")
    child = os.fork()
    if child == 0:
        try:
            open_store(behind_proxy.uri).read("x")
        except StorageError as error:
            os._exit(0 if "spawn or forkserver" in str(error) else 1)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_private_authority_is_trusted_through_aws_ca_bundle(
    bucket: str, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, certificate, key = make_certificate(tmp_path)
    with FaultyProxy(server.endpoint, certificate=certificate, key=key) as proxy:
        uri = f"s3://{bucket}/p?endpoint_url={proxy.endpoint}"
        with pytest.raises(StorageError, match=r"certificate of .* is not trusted; set AWS_CA_BUNDLE"):
            list(open_store(uri).list())
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        assert list(open_store(uri).list()) == []


def test_a_store_shows_no_secret(behind_proxy: Store) -> None:
    behind_proxy.put("x", b"1")
    assert SECRET_KEY not in repr(behind_proxy)


def test_odd_keys_are_the_same_seen_from_outside(bucket: str, server: S3Server) -> None:
    names = ["a b", "a#b", "a%20b", "100%", "é ü 猫", "[x]{y}*?~", "+&=;'\"<>"]
    store = open_store(f"s3://{bucket}/p?endpoint_url={server.endpoint}")
    for name in names:
        store.put(name, b"1")
    keys = {item["Key"] for item in server.client().list_objects_v2(Bucket=bucket)["Contents"]}
    assert keys == {f"p/{name}" for name in names}


def test_a_key_that_no_path_can_name_is_told(bucket: str, server: S3Server) -> None:
    server.client().put_object(Bucket=bucket, Key="p/../x", Body=b"")
    with pytest.raises(StorageError, match="there is a key with an empty"):
        list(open_store(f"s3://{bucket}/p?endpoint_url={server.endpoint}").list())
