"""Which shards a user's URIs mean, what their root and stems are, and which mistakes are told."""

import os
import subprocess
from pathlib import Path

import pytest

from reinforce.storage import StorageError, Store, find_shards, open_store
from reinforce.storage.braces import expand_braces
from tests.s3_server import S3Server, use_test_credentials

PATHS = [
    "train/00000.tar",
    "train/00001.tar",
    "train/sub/00002.tar",
    "val/00000.tar",
    "val/notes.txt",
    "a.b/x y#1%.tar",
]
HIDDEN = ["train/.00003.tar", ".cache/x.tar", "train/00004.tar#1"]
STEMS = ["a.b/x y#1%", "train/00000", "train/00001", "train/sub/00002", "val/00000"]


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    name = server.make_bucket("bucket-of-shards")
    for path in PATHS + HIDDEN:
        server.client().put_object(Bucket=name, Key=f"data/{path}", Body=path.encode())
    return name


@pytest.fixture(params=["local", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a folder with shards in it; for S3, settings come from the environment."""
    if request.param == "s3":
        use_test_credentials(monkeypatch, request.getfixturevalue("server").endpoint)
        return f"s3://{request.getfixturevalue('bucket')}/data"
    fill(open_store(str(tmp_path / "data")))
    return str(tmp_path / "data")


def fill(store: Store) -> None:
    for path in PATHS + HIDDEN:
        store.put(path, path.encode())


def stems(*uris: str, root: str | None = None) -> list[str]:
    return [shard.stem for shard in find_shards(uris, root)[1]]


def roots(*uris: str, root: str | None = None) -> str:
    return find_shards(uris, root)[0]


def test_a_shard_knows_its_place(base: str) -> None:
    root, shards = find_shards([f"{base}/"])
    assert root == open_store(base).uri
    assert [shard.stem for shard in shards] == STEMS
    for shard in shards:
        assert shard.path == f"{shard.stem}.tar"
        assert shard.size == len(shard.path)
        assert shard.store.read(shard.path) == shard.path.encode()
        assert find_shards([shard.uri])[1][0].size == shard.size


@pytest.mark.parametrize(
    ("pattern", "expected", "root"),
    [
        ("train", ["00000", "00001", "sub/00002"], "train"),
        ("train/00001.tar", ["00001"], "train"),
        ("train/{00000..00001}.tar", ["00000", "00001"], "train"),
        ("{train,val}/00000.tar", ["train/00000", "val/00000"], ""),
        ("{train,val}", ["train/00000", "train/00001", "train/sub/00002", "val/00000"], ""),
        ("train/{0000{0,1},sub/00002}.tar", ["00000", "00001", "sub/00002"], "train"),
        ("train/*.tar", ["00000", "00001"], "train"),
        ("train/*", ["00000", "00001", "sub/00002"], "train"),
        ("*/00000.tar", ["train/00000", "val/00000"], ""),
        ("**/*2.tar", ["train/sub/00002"], ""),
        ("train/**", ["00000", "00001", "sub/00002"], "train"),
        ("train/0000[1-9].tar", ["00001"], "train"),
        ("train/0000?.tar", ["00000", "00001"], "train"),
        ("{train,val}/*0.tar", ["train/00000", "val/00000"], ""),
        ("a.b/x y#1%.tar", ["x y#1%"], "a.b"),
    ],
)
def test_patterns(base: str, pattern: str, expected: list[str], root: str) -> None:
    assert stems(f"{base}/{pattern}") == expected
    assert roots(f"{base}/{pattern}") == open_store(f"{base}/{root}").uri


@pytest.mark.parametrize("pattern", ["*", "train/*", "{train,val}/*.tar", "train/0000[01].tar"])
def test_a_shell_expands_to_the_same_shards(tmp_path: Path, pattern: str) -> None:
    fill(open_store(str(tmp_path)))
    command = ["bash", "-c", f"printf '%s\\n' {tmp_path}/{pattern}"]
    expanded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    shards_and_folders = [path for path in expanded if os.path.isdir(path) or path.endswith(".tar")]
    assert shards_and_folders
    root = str(tmp_path)
    assert stems(*shards_and_folders, root=root) == stems(f"{tmp_path}/{pattern}", root=root)


def test_several_uris_have_the_folder_above_all_as_root(base: str) -> None:
    uris = [f"{base}/train/00000.tar", f"{base}/train/sub"]
    assert stems(*uris) == ["00000", "sub/00002"]
    assert stems(*uris, root=base) == ["train/00000", "train/sub/00002"]
    assert stems(f"{base}/val/00000.tar", f"{base}/train/sub") == ["train/sub/00002", "val/00000"]


def test_lists_of_many_kinds(base: str, tmp_path: Path) -> None:
    list_file = tmp_path / "list.txt"
    list_file.write_text(f"# the shards\n\n{base}/train/*.tar\n  {base}/val/00000.tar  \n", encoding="utf-8-sig")
    assert stems(f"@{list_file}") == ["train/00000", "train/00001", "val/00000"]
    assert stems(f"@{list_file}", f"{base}/a.b") == ["a.b/x y#1%", "train/00000", "train/00001", "val/00000"]
    with pytest.raises(StorageError, match=r"list of shards .*nowhere\.txt: no such file"):
        stems(f"@{tmp_path}/nowhere.txt")
    list_file.write_text("# nothing\n")
    with pytest.raises(StorageError, match="no shards"):
        stems(f"@{list_file}")


def test_relative_lines_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/0.tar").touch()
    (tmp_path / "list.txt").write_text("here/0.tar\n")
    monkeypatch.chdir(tmp_path)
    assert stems("@list.txt") == stems("here") == stems("h*/0.tar", root="here") == ["0"]


@pytest.mark.parametrize(
    ("uris", "complaint"),
    [
        (["BASE/train/{00000..00005}.tar"], r"4 of 6 members of .* no shard: .*/00002.tar, .*/00003.tar, .*, \.\.\.$"),
        (["BASE/train/{00000..00011}.tar"], r"10 of 12 members"),
        (["BASE/{train,gone}"], r"1 of 2 members .*/gone$"),
        (["BASE/train/x*.tar"], r"no \*\.tar matches .*x"),
        (["BASE/train/00009.tar"], r"no such (object|file or folder): .*00009\.tar"),
        (["BASE/nowhere"], r"no \*\.tar below .*nowhere|no such file or folder: .*nowhere"),
        (["BASE/train/{0000"], r"brace that is not closed"),
        (["BASE/train/{x}.tar"], r"braces hold a range"),
        (["BASE/train/{0..99999999}.tar"], r"more than 1000000"),
        (["BASE/train", "BASE/train/00000.tar"], r"00000\.tar is named twice"),
        (["BASE/train", "s3://another/x.tar"], r"not in one bucket"),
        ([], r"no shards: give"),
    ],
)
def test_mistakes_are_told_in_one_line(base: str, uris: list[str], complaint: str) -> None:
    with pytest.raises(StorageError, match=complaint) as caught:
        find_shards([uri.replace("BASE", base) for uri in uris])
    assert "\n" not in str(caught.value)


def test_shards_outside_the_root_are_refused(base: str) -> None:
    with pytest.raises(StorageError, match=r"val/00000\.tar is outside the source root .*train: pass --root"):
        find_shards([f"{base}/*/00000.tar"], root=f"{base}/train")
    with pytest.raises(StorageError, match="outside the source root"):
        find_shards([f"{base}/train"], root=f"{base}/tra")


def test_one_bucket_reached_two_ways_has_no_common_root() -> None:
    with pytest.raises(StorageError, match="not in one bucket reached one way"):
        find_shards(["s3://b/p/0.tar?profile=a", "s3://b/p/1.tar?profile=b"])


def test_options_are_no_wildcards_and_reach_the_shards(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_credentials(monkeypatch)
    query = f"?endpoint_url={server.endpoint}&region=eu-west-3"
    store = open_store(f"s3://{server.make_bucket('with-options')}/p{query}")
    store.put("00.tar", b"1")
    for root in (None, "s3://with-options/p", f"s3://with-options/p{query}"):
        found_root, (shard,) = find_shards([f"s3://with-options/p/0?.tar{query}"], root)
        assert found_root == store.uri
        assert shard.uri == store.uri_of("00.tar")
        assert shard.store.read(shard.path) == b"1"


def test_names_with_special_characters_that_exist_are_names(tmp_path: Path) -> None:
    for name in ("a[1].tar", "{x}.tar", "b*", "c{0..3}"):
        path = tmp_path / name
        (path / "0.tar" if not name.endswith(".tar") else path).parent.mkdir(exist_ok=True)
        (path if name.endswith(".tar") else path / "0.tar").touch()
    assert stems(*(str(path) for path in tmp_path.iterdir())) == ["a[1]", "b*/0", "c{0..3}/0", "{x}"]


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").touch()
    with pytest.raises(StorageError, match=r"not a \.tar; a list of shards is given as @FILE"):
        find_shards([str(tmp_path / "list.txt")])


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.tar")).touch()
    with pytest.raises(StorageError, match="not UTF-8"):
        find_shards([str(tmp_path)])


def test_local_uris_are_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("a b/", "./a b", "~/a b", f"{tmp_path}/x/../a b", f"file://{tmp_path}/a%20b"):
        assert open_store(uri).uri == f"file://{tmp_path}/a%20b"
    assert open_store("a b").uri_of("x#y") == f"file://{tmp_path}/a%20b/x%23y"
    assert open_store("s3://b/p/").uri == "s3://b/p"
    open_store("new/folder", create=True)
    assert (tmp_path / "new/folder").is_dir()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("x{a,b{1,2},}y{3,4}", ["xay3", "xay4", "xb1y3", "xb1y4", "xb2y3", "xb2y4", "xy3", "xy4"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected
    shell = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True, check=True)
    assert shell.stdout.split() == expected
