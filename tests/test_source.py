"""Tars as the world writes them: every key once, every oddity counted."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset as wds

from reinforce.config import SourceConfig
from reinforce.sample import DropReason, Sample
from reinforce.shards.source import ShardError, SourceShard, index_tar, split_name
from tests.tars import Members, image_bytes, pairs, write_tar

IMAGE = image_bytes(0)


def read(
    tmp_path: Path, members: Members, config: SourceConfig | None = None, **options: object
) -> tuple[list[Sample], dict[str, int]]:
    shard = SourceShard(write_tar(tmp_path / "a.tar", members), config or SourceConfig())
    samples = list(shard.samples(**options))  # type: ignore[arg-type]
    assert len(samples) == len(shard)
    return samples, dict(+shard.counts)


def test_members_of_a_key_need_not_be_adjacent(tmp_path: Path) -> None:
    members = [("b.jpg", IMAGE), ("a.txt", b"of a"), ("b.txt", b"of b"), ("a.jpg", IMAGE + b"a")]
    samples, counts = read(tmp_path, members)
    assert [(s.key, s.captions) for s in samples] == [("b", ("of b",)), ("a", ("of a",))]
    assert samples[1].image == IMAGE + b"a"
    assert counts == {}


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("a.jpg", "a", "jpg"),
        ("A.B.JPEG", "A.B", "jpeg"),
        ("./folder.v1/x.WebP", "folder.v1/x", "webp"),
        ("././x.png", "x", "png"),
        ("a.b.txt", "a.b", "txt"),
        ("a.ir.jpg", "a", "ir.jpg"),
        ("a.IR.JPG", "a", "ir.jpg"),
        ("ir.jpg", "ir", "jpg"),
        (".jpg", None, None),
        ("folder/.jpg", None, None),
        ("a.npz", None, None),
        ("jpg", None, None),
    ],
)
def test_split_name(name: str, key: str | None, suffix: str | None) -> None:
    suffixes = sorted(["jpg", "jpeg", "png", "webp", "txt", "json", "cls", "ir.jpg"], key=len, reverse=True)
    assert split_name(name, suffixes) == (None if key is None else (key, suffix))


def test_long_and_unicode_names_survive_every_tar_format(tmp_path: Path) -> None:
    key = "a/" + "very_long_folder_name/" * 12 + "ключ é"
    for tar_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        shard = SourceShard(
            write_tar(tmp_path / "a.tar", [(f"{key}.jpg", IMAGE)], tar_format=tar_format), SourceConfig()
        )
        assert [sample.key for sample in shard.samples()] == [key]


def test_names_that_are_not_utf8_stay_distinct(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name in ("\xe9.jpg", "\xe8.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(IMAGE)
            tar.addfile(info, io.BytesIO(IMAGE))
    keys = [sample.key for sample in SourceShard(path, SourceConfig()).samples()]
    assert len(set(keys)) == 2
    assert all(key.encode() for key in keys)


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "a.tar"), mtime=0) as writer:
        for index in range(3):
            writer.write({"__key__": f"x/{index}", "jpg": IMAGE, "txt": f"text {index}", "json": {"a": index}})
    samples = list(SourceShard(tmp_path / "a.tar", SourceConfig()).samples())
    assert [(s.key, s.captions) for s in samples] == [(f"x/{i}", (f"text {i}",)) for i in range(3)]


def test_captions_come_from_fields_in_order_and_are_bounded(tmp_path: Path) -> None:
    document = {"short": "one", "all": ["two", "", 3, "three", None, "four"], "url": "x"}
    config = SourceConfig(captions=("json.all", "txt", "json.short", "json.absent"), max_captions=3)
    members = [("a.jpg", IMAGE), ("a.txt", b"\xef\xbb\xbf text \n"), ("a.json", json.dumps(document).encode())]
    samples, counts = read(tmp_path, members, config)
    assert samples[0].captions == ("two", "three", "four")
    assert counts == {"captions_empty": 1, "captions_undecodable": 2, "captions_over_bound": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"\xff\xfe bad", "captions_undecodable"), (b" \n", "captions_empty"), (b"", "captions_empty")],
)
def test_a_bad_caption_is_left_out_and_the_sample_kept(tmp_path: Path, text: bytes, reason: str) -> None:
    samples, counts = read(tmp_path, [("a.jpg", IMAGE), ("a.txt", text)])
    assert (samples[0].captions, samples[0].drop, counts) == ((), None, {reason: 1})


@pytest.mark.parametrize("document", [b"{", b"\xff", b"[1]", b'{"c": "\\ud800"}', b"[" * 100_000])
def test_a_bad_json_costs_its_captions_only(tmp_path: Path, document: bytes) -> None:
    config = SourceConfig(captions=("json.c", "txt"))
    samples, counts = read(tmp_path, [("a.jpg", IMAGE), ("a.json", document), ("a.txt", b"text")], config)
    assert (samples[0].captions, samples[0].drop, counts) == (("text",), None, {"captions_undecodable": 1})


def test_a_repeated_sample_gives_one_extra_row_and_the_first_is_kept(tmp_path: Path) -> None:
    members = [
        ("a.jpg", IMAGE),
        ("a.txt", b"first"),
        ("b.jpg", IMAGE),
        ("a.JPG", IMAGE + b"2"),
        ("./a.txt", b"second"),
        ("b.txt", b"b"),
        ("b.txt", b"again"),
    ]
    samples, _ = read(tmp_path, members)
    drops = [(s.key, s.drop.reason if s.drop else None) for s in samples]
    assert drops == [("a", None), ("b", None), ("a", DropReason.DUPLICATE_KEY), ("b", DropReason.DUPLICATE_KEY)]
    assert (samples[0].captions, samples[0].image) == (("first",), IMAGE)


def test_modalities_are_carried_and_undeclared_ones_counted(tmp_path: Path) -> None:
    members = [("a.jpg", IMAGE), ("a.ir.jpg", b"ir"), ("b.v1.jpg", IMAGE), ("b.v1.txt", b"b"), ("c.npz", b"x")]
    samples, counts = read(tmp_path, members, SourceConfig(modalities={"thermal": ".ir.jpg"}))
    assert [(s.key, dict(s.modalities)) for s in samples] == [("a", {"thermal": b"ir"}), ("b.v1", {})]
    assert counts == {"unused_members": 1}
    samples, counts = read(tmp_path, members)
    assert [s.key for s in samples] == ["a", "b.v1"]
    assert counts == {"unused_members": 2}


def test_a_second_image_of_a_key_is_unused(tmp_path: Path) -> None:
    samples, counts = read(tmp_path, [("a.png", IMAGE), ("a.jpg", b"other")])
    assert (samples[0].image, counts) == (IMAGE, {"unused_members": 1})


def test_a_missing_image_is_a_drop_with_what_there_was(tmp_path: Path) -> None:
    samples, _ = read(tmp_path, [("a.txt", b"text"), ("a.cls", b"3"), ("b.jpg", IMAGE)])
    assert samples[0].drop is not None
    assert (samples[0].drop.reason, samples[0].drop.detail) == (DropReason.MISSING_IMAGE, "cls, txt")
    assert samples[1].drop is None


def test_selection_and_limit_drop_by_key(tmp_path: Path) -> None:
    samples, _ = read(tmp_path, [*pairs(5), ("00000.txt", b"again")], selected={"00001", "00003", "00004"}, limit=4)
    kept = [s.key for s in samples if s.drop is None]
    assert kept == ["00001", "00003"]
    assert [s.drop.reason.value for s in samples if s.drop] == [
        "not_selected",
        "not_selected",
        "not_selected",
        "duplicate_key",
    ]


def test_directories_and_links_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        info = tarfile.TarInfo("a.jpg")
        info.size = len(IMAGE)
        tar.addfile(info, io.BytesIO(IMAGE))
    assert [member.name for member in index_tar(path)] == ["a.jpg"]


def good_tar(tmp_path: Path) -> bytes:
    return write_tar(tmp_path / "good.tar", pairs(4)).read_bytes()


def boundary(tmp_path: Path, member: int) -> int:
    """The offset of the header of a member of `good_tar`."""
    good_tar(tmp_path)
    return list(index_tar(tmp_path / "good.tar"))[member].offset - 512


def test_a_bad_tar_fails_with_its_reason(tmp_path: Path) -> None:
    data, middle = good_tar(tmp_path), boundary(tmp_path, 4)
    damaged = bytearray(data)
    damaged[middle + 100] ^= 0xFF
    cases = {
        "is empty (0 bytes)": b"",
        "is not a tar": b"<html>404 Not Found</html>" * 100,
        "is truncated: its end marker is missing at byte": data[:middle],
        "is truncated inside member 00001.txt": data[: middle - 512],
        "is truncated": data[: middle + 200],
        f"is damaged: no tar header at byte {middle}": bytes(damaged),
        "holds no samples": write_tar(tmp_path / "other.tar", [("README", b"x")]).read_bytes(),
    }
    for message, content in cases.items():
        path = tmp_path / "bad.tar"
        path.write_bytes(content)
        with pytest.raises(ShardError) as raised:
            SourceShard(path, SourceConfig())
        assert str(raised.value).startswith(message)
        assert "\n" not in str(raised.value)


def test_an_empty_tar_fails(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="holds no samples"):
        SourceShard(write_tar(tmp_path / "a.tar", []), SourceConfig())


def test_what_another_asks_for_is_not_counted(tmp_path: Path) -> None:
    """Else a spine would depend on which captioner was in the recipe when it was built."""
    members = [("a.png", image_bytes(1)), ("a.txt", b"words"), ("a.json", b"{"), ("b.png", image_bytes(2))]
    path = write_tar(tmp_path / "a.tar", [*members, ("b.json", b'{"other": ["", "more"]}')])
    plain, asked = (SourceShard(path, SourceConfig(captions=("txt",), max_captions=1)) for _ in range(2))
    assert [sample.captions for sample in plain.samples()] == [("words",), ()]
    assert [sample.fields["json.other"] for sample in asked.samples(extra_fields=("json.other",))] == [(), ("more",)]
    assert +plain.counts == +asked.counts
