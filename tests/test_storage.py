"""What every store promises, over a local folder and over S3 across real HTTP; and what only a folder has to fear."""

import errno
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from reinforce.storage import ObjectInfo, StorageError, Store, local, open_store
from tests.s3_server import S3Server, use_test_credentials


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_test_credentials(monkeypatch)
    return server.make_bucket(f"bucket-{abs(hash(request.node.nodeid))}")


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    server, bucket = request.getfixturevalue("server"), request.getfixturevalue("bucket")
    return f"s3://{bucket}/some/prefix?endpoint_url={server.endpoint}"


@pytest.fixture
def store(uri: str) -> Store:
    return open_store(uri)


def test_what_was_put_can_be_read_listed_and_deleted(store: Store, tmp_path: Path) -> None:
    assert not store.exists("a/x")
    assert store.put_if_absent("a/x", b"0123456789")
    assert store.exists("a/x")
    assert not store.exists("a")
    assert store.size("a/x") == 10
    assert store.read("a/x") == b"0123456789"
    assert store.download("a/x", tmp_path / "target") == 10
    assert (tmp_path / "target").read_bytes() == b"0123456789"
    assert open_store(store.uri).read("a/x") == b"0123456789"
    store.delete("a/x")
    store.delete("a/x")
    assert not store.exists("a/x")


def test_only_a_folders_objects_are_files_of_this_machine(store: Store, tmp_path: Path) -> None:
    store.put("a b/x", b"1")
    path = store.local_path("a b/x")
    assert path == (tmp_path / "store" / "a b" / "x" if store.uri.startswith("file:") else None)
    assert path is None or path.read_bytes() == b"1"
    with pytest.raises(StorageError, match="unsafe path"):
        store.local_path("../x")


def test_creating_twice_changes_nothing(store: Store, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.write_bytes(b"second")
    assert store.put_if_absent("a/x", b"first!")
    assert store.put_if_absent("a/x", b"second") is False
    assert store.put_if_absent("a/x", spool) is False
    assert store.read("a/x") == b"first!"
    store.put("a/x", b"third")
    assert store.read("a/x") == b"third"


@pytest.mark.parametrize("size", [0, 1, 9 * 1024 * 1024])
def test_files_of_any_size_are_put_and_fetched_whole(store: Store, tmp_path: Path, size: int) -> None:
    spool, target = tmp_path / "spool", tmp_path / "target"
    spool.write_bytes(os.urandom(size))
    assert store.put_if_absent("x", spool)
    assert store.download("x", target) == size
    assert target.read_bytes() == spool.read_bytes()


def test_listing_is_recursive_by_path_and_by_folder(store: Store) -> None:
    paths = ["b", "a/x", "a.b/x", "a-b", "a/y/z", "ab/x", "a0", "Z", "é"]
    for path in paths:
        store.put(path, path.encode())
    assert [info.path for info in store.list()] == sorted(paths)
    assert list(store.list("a")) == [ObjectInfo("a/x", 3), ObjectInfo("a/y/z", 5)]
    assert [info.path for info in store.list("a", recursive=False)] == ["a/x"]
    assert [info.path for info in store.list(recursive=False)] == ["Z", "a-b", "a0", "b", "é"]
    assert list(store.list("missing")) == []


def test_temporaries_are_hidden(store: Store, uri: str, tmp_path: Path) -> None:
    store.put("a/whole", b"1")
    store.put("a/half#17", b"1")
    assert [info.path for info in store.list()] == ["a/whole"]


ODD_NAMES = ["a b.tar", "a#b.tar", "a%20b.tar", "100%.tar", "é ü 猫.tar", "[x]{y}*?~.tar", "+&=;'\"<>.tar", "#1/x"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_kept_as_they_are(store: Store, name: str, tmp_path: Path) -> None:
    assert store.put_if_absent(name, b"1")
    assert list(store.list()) == [ObjectInfo(name, 1)]
    assert store.read(name) == b"1"
    assert store.download(name, tmp_path / "target") == 1


@pytest.mark.parametrize("path", ["", "../x", "a/../x", "a//x", "/x", "x/", ".", "./x", "a\nb", "a\0b", "\udcff"])
def test_unsafe_paths_are_refused(store: Store, path: str) -> None:
    with pytest.raises(StorageError, match="unsafe path"):
        store.put(path, b"1")
    with pytest.raises(StorageError, match="unsafe path"):
        store.read(path)


def test_reading_what_is_missing_says_which(store: Store, tmp_path: Path) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: store.read("a/x"),
        lambda: store.size("a/x"),
        lambda: store.read_range("a/x", 0, 1),
        lambda: store.open_input("a/x"),
        lambda: store.download("a/x", tmp_path / "target"),
    ]
    for attempt in attempts:
        with pytest.raises(FileNotFoundError, match="a/x"):
            attempt()
    assert not (tmp_path / "target").exists()


def test_ranges_end_where_the_object_ends(store: Store) -> None:
    store.put("x", b"0123456789")
    assert store.read_range("x", 2, 3) == b"234"
    assert store.read_range("x", 8, 100) == b"89"
    assert store.read_range("x", 10, 5) == b""
    assert store.read_range("x", 3, 0) == b""


def test_an_input_behaves_like_a_file(store: Store) -> None:
    content = os.urandom(1000)
    store.put("x", content)
    for size in (None, 1000):
        with store.open_input("x", size=size) as file:
            assert file.seek(-10, os.SEEK_END) == 990
            assert file.read() == content[990:]
            assert file.read(5) == b""
            file.seek(100)
            assert file.read(7) == content[100:107]
            assert file.tell() == 107
            file.seek(3, os.SEEK_CUR)
            buffer = bytearray(50)
            assert cast(io.RawIOBase, file).readinto(buffer) == 50
            assert buffer == content[110:160]


def test_a_local_file_that_changed_since_it_was_listed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    with pytest.raises(StorageError, match="5 bytes, not the 6 listed"):
        open_store(str(tmp_path)).download("x", tmp_path / "target", size=6)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("s3://b/p?aws_secret_access_key=HUSH", "aws_secret_access_key does not belong"),
        ("s3://b/p?profile=a&token=HUSH", "token does not belong"),
        ("s3://KEY:HUSH@b/p", "credentials do not belong"),
        ("s3://b/p?endpoint_url=http://me:HUSH@host", "credentials do not belong"),
        ("s3://b/p?endpoint_url=host:9000", "https://host:port"),
        ("s3://b/p?speed=fast", "unknown option 'speed'"),
        ("gs://b/p?profile=a", "unknown option 'profile'"),
        ("s3://b/p?profile=", "option profile"),
        ("s3:///p", "bucket"),
        ("ftp://b/p", "unknown scheme"),
        ("file://host/p", "three slashes"),
        ("", "empty URI"),
    ],
)
def test_uris_that_cannot_be_used_are_refused_without_repeating_secrets(uri: str, complaint: str) -> None:
    with pytest.raises(StorageError, match=complaint) as caught:
        open_store(uri)
    assert "HUSH" not in str(caught.value)


def test_importing_storage_is_light() -> None:
    heavy = ("torch", "ray", "pyarrow", "numpy", "obstore", "botocore", "boto3")
    script = f"import reinforce.storage, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


KILLED_WRITER = """
import os, sys
from reinforce.storage import open_store
os.fsync = lambda _: (print("written", flush=True), sys.stdin.read(), os._exit(9))
open_store(sys.argv[1]).put_if_absent("a/x", b"half")
"""


def test_a_sweep_takes_what_the_dead_left_and_not_what_the_living_write(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a/whole", b"1")
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        assert [info.path for info in store.list()] == ["a/whole"]
        assert not store.exists("a/x")
        assert store.sweep_temporaries() == 0
        writer.kill()
    assert len(list(tmp_path.glob("a/x#*"))) == 1
    assert store.put_if_absent("a/x", b"whole")
    assert store.sweep_temporaries() == 1
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["whole", "x"]


def test_where_there_are_no_locks_only_old_temporaries_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_lock", lambda _: None)
    (tmp_path / "new#1").touch()
    (tmp_path / "old#1").touch()
    os.utime(tmp_path / "old#1", (0, 0))
    assert open_store(str(tmp_path)).sweep_temporaries() == 1
    assert (tmp_path / "new#1").exists()


def test_of_many_writers_one_creates(store: Store) -> None:
    contents = [f"writer {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda content: store.put_if_absent("a/x", content), contents))
    assert sum(created) == 1
    assert store.read("a/x") == contents[created.index(True)]
    assert [info.path for info in store.list()] == ["a/x"]


def refuse(number: int) -> Callable[..., None]:
    def raise_it(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


def test_a_file_system_without_hard_links_still_creates_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    store = open_store(str(tmp_path))
    assert store.put_if_absent("x", b"1")
    assert not store.put_if_absent("x", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert store.read("x") == b"1"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(number))
    store = open_store(str(tmp_path))
    for attempt in (store.put_if_absent, store.put):
        with pytest.raises(StorageError, match=r"cannot write file:///.*/a/x: (no space|permission)") as caught:
            attempt("a/x", b"1")
        assert caught.value.errno == number
        assert "\n" not in str(caught.value)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        open_store(str(tmp_path)).put("file/x", b"1")
    with pytest.raises(StorageError, match="cannot create folder"):
        open_store(str(tmp_path / "file" / "store"), create=True)


def test_an_unreadable_folder_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", refuse(errno.EACCES))
    with pytest.raises(StorageError, match="cannot list") as caught:
        list(open_store(str(tmp_path)).list())
    assert caught.value.errno == errno.EACCES


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x").write_bytes(b"1")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/linked").symlink_to(tmp_path / "real")
    (tmp_path / "real/up").symlink_to(tmp_path / "real")
    store = open_store(str(tmp_path / "store"))
    assert [info.path for info in store.list()] == ["linked/x"]
    (tmp_path / "store/dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"dangling: a link to a file that is missing"):
        list(store.list())


def test_errors_keep_their_number_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StorageError("disk full", errno.ENOSPC)))
    assert (str(error), error.errno) == ("disk full", errno.ENOSPC)
