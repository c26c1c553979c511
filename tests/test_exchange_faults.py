"""Imports and packings of what does not quite fit: tars of another origin, images joined later, options ignored."""

import io
import json
import struct
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import reinforce
from reinforce.cli import app
from reinforce.exchange.layout import MemberError, escape_key, read_embeddings, source_config
from reinforce.exchange.notes import parse_notes
from reinforce.exchange.samples import PublishedSample, parse_sample
from reinforce.shards.reader import FormatError
from reinforce.shards.source import SourceShard
from reinforce.student.groups import ReadError
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_plan, files_of, run
from tests.published import NUM_VIEWS, SIZE, WIDTHS, published_sample, with_json, write_published
from tests.students import facts, plan_of, read
from tests.tars import encode, image_bytes, pairs, write_tar

DIMS = ["--dims", ",".join(f"{name}={dim}" for name, dim in WIDTHS.items())]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def import_(source: Path | str, output: Path, *options: str) -> Result:
    return call("import-datacompdr", source, "--output", output, *options)


def members_of(tar: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(tar) as file:
        return [(info.name, (file.extractfile(info) or io.BytesIO()).read()) for info in file]


def turned(orientation: int, width: int = 100, height: int = 100) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encode(Image.open(io.BytesIO(image_bytes(1, width, height))), "JPEG", exif=exif)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two shards by two teachers, and its packed tars."""
    folder = tmp_path_factory.mktemp("exchange")
    for stem in ("a", "b"):
        write_tar(folder / f"source/{stem}.tar", pairs(3))
    run(fake_plan({"views": {"count": 2}}), folder / "source", folder / "reinforced")
    assert call("pack", folder / "reinforced", "--output", folder / "packed").exit_code == 0
    return folder


def test_boxes_in_pixels_as_stored_are_not_cut_from_a_turned_image(tmp_path: Path) -> None:
    bare = [published_sample(index, is_joined=False) | {"txt": b"a caption"} for index in range(2)]
    write_published(tmp_path / "source/a.tar", bare)
    assert import_(tmp_path / "source", tmp_path / "imported", *DIMS).exit_code == 0
    joined = [published_sample(0), published_sample(1) | {"jpg": turned(6)}]
    # The set says of which images it was made; these are others.
    joined = [sample | {"json": b"{}"} for sample in joined]
    write_published(tmp_path / "joined/a.tar", joined)
    options: dict[str, Any] = {"root": str(tmp_path / "joined"), "verify_images": False}
    with pytest.raises(ReadError, match="turned by EXIF"):
        list(read(plan_of(tmp_path / "imported", **options), epochs=1))
    batches = list(read(plan_of(tmp_path / "imported", damaged="skip", **options), epochs=1, batch_size=1))
    assert [key for batch in batches for key in batch.keys] == [f"{0:032x}"]


def test_packed_boxes_are_of_the_image_before_it_shrank(tmp_path: Path) -> None:
    bare = [published_sample(index, is_joined=False) | {"txt": b"a caption", "json": b"{}"} for index in range(2)]
    write_published(tmp_path / "source/a.tar", bare)
    assert import_(tmp_path / "source", tmp_path / "imported", *DIMS).exit_code == 0
    write_published(tmp_path / "joined/a.tar", [published_sample(0), published_sample(1) | {"jpg": turned(6)}])
    paths = ("--root", tmp_path / "joined", "--output", tmp_path / "packed")
    result = call("pack", tmp_path / "imported", *paths, "--shortest-side", "20")
    assert result.exit_code == 0, result.output
    assert "views_do_not_fit 1" in result.stdout
    (paug,) = [json.loads(data) for name, data in members_of(tmp_path / "packed/a.tar") if name.endswith("paug.json")]
    assert (paug["image_width"], paug["image_height"]) == SIZE
    published = json.loads(bare[0]["paug.json"])["param_aug"]
    assert paug["boxes"] == [box for box, _ in published]
    assert all(top + height <= 20 and left + width <= 30 for (top, left, height, width), _ in paug["param_aug"])


def test_only_orientations_that_turn_are_turned(tmp_path: Path) -> None:
    garbled = encode(Image.open(io.BytesIO(image_bytes(1, 100, 100))), exif=b"Exif\0\0no TIFF at all")
    with pytest.raises(SyntaxError):
        Image.open(io.BytesIO(garbled)).getexif()
    images = [turned(0), garbled, turned(1), turned(2)]
    samples = [published_sample(index) | {"jpg": image} for index, image in enumerate(images)]
    write_published(tmp_path / "source/a.tar", samples)
    assert import_(tmp_path / "source", tmp_path / "imported", *DIMS).exit_code == 0
    rows = pq.read_table(tmp_path / "imported/samples/a.parquet").to_pylist()
    assert [row["drop_reason"] for row in rows] == [None, None, None, "views_do_not_fit"]


def test_tars_of_two_packings_do_not_mix(folder: Path, tmp_path: Path) -> None:
    teachers = [FakeTeacher("large", dim=12, image_size=24), FakeTeacher("third", dim=8, image_size=16)]
    run(fake_plan({"views": {"count": 2}}, teachers=teachers), folder / "source", tmp_path / "reinforced")
    assert call("pack", tmp_path / "reinforced", "--output", tmp_path / "other").exit_code == 0
    source = tmp_path / "source"
    write_tar(source / "a.tar", members_of(folder / "packed/a.tar"))
    write_tar(source / "b.tar", members_of(tmp_path / "other/b.tar"))
    write_published(source / "c.tar", [published_sample(0)])
    result = import_(source, tmp_path / "imported")
    assert result.exit_code == 1
    for stem in ("b", "c"):
        assert f"failed: {stem}: is not of the same `reinforce pack` as the first one" in result.stdout
    assert reinforce.open_dataset(str(tmp_path / "imported")).stems == ["a"]
    (source / "a.tar").unlink()
    (source / "b.tar").rename(source / "d.tar")
    result = import_(source, tmp_path / "published", *DIMS)
    assert "failed: d: is a tar of `reinforce pack`, the first one is not" in result.stdout


def test_a_missing_clean_view_moves_no_other(folder: Path, tmp_path: Path) -> None:
    changed = []
    for name, data in members_of(folder / "packed/a.tar"):
        if name == "00001.npz":
            arrays = {key: rows for key, rows in np.load(io.BytesIO(data)).items() if key != "clean_emb"}
            file = io.BytesIO()
            np.savez(file, **arrays)
            data = file.getvalue()
        changed.append((name, data))
    write_tar(tmp_path / "source/a.tar", changed)
    result = import_(tmp_path / "source", tmp_path / "imported")
    assert result.exit_code == 0, result.output
    # The notes at the front of the tar are ours, and nothing of the source.
    assert "unused_members" not in result.stdout
    before, after = (reinforce.open_dataset(str(path)) for path in (folder / "reinforced", tmp_path / "imported"))
    for signal in (signal for signal in after.signals if signal.kind == "image"):
        expected, found = before.table(signal, "a").to_pylist(), after.table(signal, "a").to_pylist()
        assert found[1]["view_000"] is None
        assert found == [expected[0], expected[1] | {"view_000": None}, expected[2]]
        with after.open(signal, "a") as stored:
            assert stored.footer["nulls"] == {"no_view": 1}
    result = call("inspect", tmp_path / "imported", "--verify")
    assert result.exit_code == 0, result.output


def test_keys_that_differ_by_a_space_keep_their_images(tmp_path: Path) -> None:
    members = [(f"{key}.{suffix}", data) for key, data, suffix in _two_keys()]
    write_tar(tmp_path / "source/a.tar", members)
    run(fake_plan({"views": {"count": 2}}), tmp_path / "source", tmp_path / "reinforced")
    assert call("pack", tmp_path / "reinforced", "--output", tmp_path / "packed").exit_code == 0
    expected, found = (
        sorted(fact for batch in read(plan_of(tmp_path / name), epochs=1, batch_size=2) for fact in facts(batch))
        for name in ("reinforced", "packed")
    )
    assert {fact[1] for fact in expected} == {"x", " x"}
    assert found == expected


def _two_keys() -> list[tuple[str, bytes, str]]:
    return [
        (key, data, suffix)
        for index, key in enumerate(("x", " x"))
        for data, suffix in ((image_bytes(index), "png"), (f"words of {index}".encode(), "txt"))
    ]


def test_a_part_with_more_views_and_captions_is_imported_into_the_columns_there_are(tmp_path: Path) -> None:
    few = with_json(published_sample(0, num_text_rows=2), "syn.json", "syn_text", lambda texts: texts[:1])
    write_published(tmp_path / "source/00.tar", [few])
    write_published(tmp_path / "source/01.tar", [published_sample(1), published_sample(2)])
    none = with_json(published_sample(3, is_joined=False), "syn.json", "syn_text", lambda _: [])
    write_published(tmp_path / "source/02.tar", [none])
    assert import_(f"{tmp_path}/source/{{00..00}}.tar", tmp_path / "imported", *DIMS).exit_code == 0
    result = import_(f"{tmp_path}/source/{{01..01}}.tar", tmp_path / "imported", *DIMS)
    assert result.exit_code == 0, result.output
    assert "synthetic_over_bound 2" in result.stdout
    result = import_(f"{tmp_path}/source/{{02..02}}.tar", tmp_path / "imported", *DIMS)
    assert result.exit_code == 0, result.output
    assert reinforce.open_dataset(str(tmp_path / "imported")).stems == ["00", "01", "02"]
    assert (tmp_path / "imported/captions/datacompdr/02.parquet").exists()
    result = call("inspect", tmp_path / "imported", "--verify")
    assert result.exit_code == 0, result.output


def test_a_tar_that_changed_is_not_mixed_with_what_was_made_of_it_before(tmp_path: Path) -> None:
    write_published(tmp_path / "source/a.tar", [published_sample(0), published_sample(1)])
    assert import_(tmp_path / "source", tmp_path / "imported", *DIMS).exit_code == 0
    (tmp_path / "imported/embeddings/first/image/a.parquet").unlink()
    write_published(tmp_path / "source/a.tar", [published_sample(2), published_sample(3)])
    before = files_of(tmp_path / "imported")
    result = import_(tmp_path / "source", tmp_path / "imported", *DIMS)
    assert result.exit_code == 1
    assert "failed: a: is another tar than the one whose import began" in result.stdout
    after = files_of(tmp_path / "imported")
    assert {path for path in after if path.endswith(".parquet")} == {
        path for path in before if path.endswith(".parquet")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--logit-scale", "large=70"], "--logit-scale: these tars are of `reinforce pack`"),
        (["--captioner", "coca"], "--captioner: these tars are of `reinforce pack`"),
        (["--logit-scale", "large=inf"], "--logit-scale large=inf: give NAME=SCALE"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    folder: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = import_(folder / "packed", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_nothing_is_written_among_what_is_read(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "copies/a.tar", members_of(folder / "source/a.tar"))
    before = files_of(folder) | files_of(tmp_path)
    for result, message in (
        (call("pack", folder / "reinforced", "--output", folder / "source"), "is the folder of the source's tars"),
        (call("pack", folder / "reinforced", "--output", folder / "reinforced"), "is a dataset"),
        (call("pack", folder / "reinforced", "--output", tmp_path / "copies"), "is not a tar of this packing"),
        (import_(folder / "packed", folder / "packed"), "is the folder of the source's tars"),
    ):
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert files_of(folder) | files_of(tmp_path) == before


def test_samples_wait_without_their_bytes(tmp_path: Path) -> None:
    tar = write_published(tmp_path / "a.tar", [published_sample(0)])
    source = source_config(("txt",), 1)
    (sample,) = SourceShard(tar, source).samples()
    parsed = parse_sample(sample, source.max_pixels, Counter(), width=20)
    assert isinstance(parsed, PublishedSample)
    assert (parsed.sample.image, parsed.sample.modalities) == (b"", {})
    assert (parsed.image_size, len(parsed.views)) == (SIZE, NUM_VIEWS)


def test_a_zip_member_that_forges_its_size_unpacks_to_no_more_than_that() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image_emb.npy", bytes(64 << 20))
    data, size = bytearray(file.getvalue()), struct.pack("<I", 64 << 20)
    while (place := data.find(size)) >= 0:
        data[place : place + 4] = struct.pack("<I", 1000)
    tracemalloc.start()
    with pytest.raises(MemberError, match="image_emb is damaged"):
        read_embeddings(bytes(data), None)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20


def test_no_two_keys_are_escaped_to_one() -> None:
    keys = ["__x__/d", "%5F_x__/d", "%255F_x__/d", "a.b/c.d", "a.b/c%2Ed", "a%2Eb/c.d", "a.b/c%252Ed"]
    assert len({escape_key(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("rest", ['"teachers": [["a", 1e999]]', '"teachers": [], "signals": []', '"teachers": 5'])
def test_notes_that_pack_would_not_write_are_one_line(rest: str) -> None:
    with pytest.raises(FormatError, match=r"^a.tar: not what `reinforce pack` writes$"):
        parse_notes(f'{{"format_version": 1, {rest}}}'.encode(), "a.tar")
