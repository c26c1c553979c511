"""`reinforce inspect --html`: the page as data. What it shows is compared with the source and the stored arrays."""

import base64
import html
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from reinforce.cli import app
from reinforce.inspection.cards import describe
from reinforce.inspection.figures import Figures, SampleName
from reinforce.inspection.report import write_report
from reinforce.inspection.stats import inspect_dataset
from reinforce.sample import View, ViewOp
from reinforce.teachers import FakeTeacher
from reinforce.views.draw import OP_NAMES, draw, view_seed
from reinforce.views.render import render
from tests.fakes import fake_plan, run
from tests.reports import SCRIPT, build_everything, full_figures, one
from tests.tars import encode, image_bytes, write_tar

MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    build_everything(folder)
    return folder


@pytest.fixture(scope="module")
def figures(built: Path) -> Figures:
    return full_figures(built / "dataset")


@pytest.fixture(scope="module")
def page(built: Path, figures: Figures) -> str:
    assert write_report(str(built / "dataset"), built / "page.html", figures) == []
    return (built / "page.html").read_text(encoding="utf-8")


def written(dataset: Path, path: Path, figures: Figures, root: Path | None = None) -> tuple[str, list[str]]:
    faults = write_report(str(dataset), path, figures, root=None if root is None else str(root))
    return path.read_text(encoding="utf-8"), faults


def pictures(text: str) -> list[np.ndarray]:
    found = re.findall(r'<img src="data:image/(?:png|webp);base64,([^"]+)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]


def articles(text: str) -> dict[str, str]:
    """The cards by key."""
    found = re.findall(r"<article>.*?</article>", text, re.DOTALL)
    keys = [re.search(r"<h3>(.*?) <span", card) for card in found]
    return {html.unescape(key[1]): card for key, card in zip(keys, found, strict=True) if key}


def column(built: Path, folder: str, stem: str, name: str) -> np.ndarray:
    """Straight from Parquet, by another way than the reader's."""
    cells = pq.read_table(built / "dataset" / folder / f"{stem}.parquet")[name].to_pylist()
    width = len(next(cell for cell in cells if cell is not None))
    return np.array([[np.nan] * width if cell is None else cell for cell in cells], np.float64)


def test_the_page_holds_every_sample_once_and_nothing_from_elsewhere(page: str) -> None:
    assert articles(page).keys() == {"k0", "k1", "k2", "k3", "k4", "<b>", "large"}
    assert page.count("<article>") == 7
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=\"(?!data:)", page)
    assert "default-src 'none'" in page
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page


def test_what_comes_from_outside_is_escaped(page: str) -> None:
    assert html.escape(SCRIPT, quote=False) in page
    for markup in ("<b>.", "<i>", "<u>", "<s>", "<em>", "<h3><b>"):
        assert markup not in page
    assert "samples/&lt;i&gt;.parquet: is &lt;u&gt;odd&lt;/u&gt;" in page
    assert "Shard sub/&lt;s&gt; failed: cannot be &lt;em&gt;read&lt;/em&gt;" in page


def test_the_page_shows_the_replayed_views(page: str) -> None:
    plan = fake_plan()
    cards = articles(page)
    for index in range(5):
        source, *views = pictures(cards[f"k{index}"])
        image = np.asarray(Image.open(io.BytesIO(image_bytes(index, 40 + index, 30))))
        np.testing.assert_array_equal(source, image)
        assert len(views) == 3
        for number, view in enumerate(views):
            drawn = draw(plan.policy, view_seed(0, f"k{index}"), number, 40 + index, 30)
            np.testing.assert_array_equal(view, render(image, drawn, 24))  # the largest teacher's size
    assert pictures(cards["large"])[0].shape == (120, 240, 3)  # a thumbnail of 300 x 150


@pytest.mark.parametrize("teacher", ["large", "small"])
def test_the_page_scores_each_caption_by_each_teacher(page: str, built: Path, teacher: str) -> None:
    image = column(built, f"embeddings/{teacher}/image", "sub/one", "view_000")
    text = column(built, f"embeddings/{teacher}/text/original", "sub/one", "caption_000")
    for row, (key, caption) in {
        0: ("k0", SCRIPT),
        2: ("k2", "two"),
        3: ("k3", "three words here"),
        4: ("k4", "four"),
    }.items():
        score = f"{float(image[row] @ text[row]):.2f}".replace("-", "−")
        cells = re.search(rf"<td>{re.escape(html.escape(caption))}</td>(.*?)</tr>", articles(page)[key], re.DOTALL)
        assert cells
        assert re.findall(r">([^<>\s]+)</td>", cells[1])[["large", "small"].index(teacher)] == score


def test_dropped_samples_are_shown_or_described(page: str) -> None:
    tiles = {
        reason: tile
        for tile in re.findall(r'<figure class="tile">.*?</figure>', page, re.DOTALL)
        for reason in re.findall(r"<b>([a-z_<>]+)</b><br>", tile.replace("_<wbr>", "_"))
    }
    assert tiles.keys() == {"corrupt_image", "duplicate_key", "empty_image", "missing_image", "not_an_image"}
    (half,) = pictures(tiles["corrupt_image"])
    whole = np.asarray(Image.open(io.BytesIO(image_bytes(30, 200, 120))))
    np.testing.assert_allclose(half[:40].mean((0, 1)), whole[:40].mean((0, 1)), atol=3)
    (first,) = pictures(tiles["duplicate_key"])
    np.testing.assert_array_equal(first, pictures(articles(page)["k0"])[0])
    assert "51 bytes: &lt;!DOCTYPE html&gt; &lt;html&gt;" in tiles["not_an_image"]
    assert "sub/one/words" in tiles["missing_image"]


def test_near_duplicates_are_side_by_side(page: str, built: Path, figures: Figures, tmp_path: Path) -> None:
    (group,) = re.findall(r'<div class="group">.*?</div></div>', page, re.DOTALL)
    shown = [pictures(articles(page)[key])[0] for key in ("k0", "k1")]
    for found, expected in zip(pictures(group), shown, strict=True):
        np.testing.assert_array_equal(found, expected)
    elsewhere = replace(figures.duplicates[0], groups=((SampleName("gone", "a"), SampleName("two", "large")),))
    text, _ = written(built / "dataset", tmp_path / "page.html", replace(figures, duplicates=(elsewhere,)))
    (group,) = re.findall(r'<div class="group">.*?</div></div>', text, re.DOTALL)
    assert len(pictures(group)) == 1
    assert "not fetched" in group


def test_the_same_dataset_gives_the_same_bytes(page: str, built: Path, figures: Figures, tmp_path: Path) -> None:
    assert written(built / "dataset", tmp_path / "page.html", figures)[0] == page


def test_an_image_that_has_changed_is_not_shown(built: Path, tmp_path: Path) -> None:
    members = [(name, image_bytes(20, 41, 30) if name == "k1.png" else data) for name, data in one()]
    write_tar(tmp_path / "source/sub/one.tar", [member for member in members if member[0] != "k2.png"])
    shutil.copy(built / "source/two.tar", tmp_path / "source/two.tar")
    found = inspect_dataset(str(built / "dataset"))
    text, faults = written(built / "dataset", tmp_path / "page.html", found, tmp_path / "source")
    cards = articles(text)
    assert faults == []
    assert {key: len(pictures(card)) for key, card in cards.items() if key in ("k0", "k1", "k2")} == {
        "k0": 4, "k1": 0, "k2": 0,
    }  # fmt: skip
    assert "has changed since the build" in cards["k1"]
    assert "not in the source shard any more" in cards["k2"]


def test_without_the_source_the_page_is_made_and_says_why(built: Path, figures: Figures, tmp_path: Path) -> None:
    write_tar(tmp_path / "root/sub/one.tar", [("notes.md", b"-")])
    text, faults = written(built / "dataset", tmp_path / "page.html", figures, tmp_path / "root")
    assert len(articles(text)) == 7
    assert pictures(text) == []
    assert "three words here" in text
    assert "holds no samples" in faults[0]
    assert "--root" in faults[1]
    for fault in faults:
        assert html.escape(fault, quote=False) in text
    options = ["--html", str(tmp_path / "again.html"), "--root", "s3://a bucket/?nonsense=1"]
    done = CliRunner().invoke(app, ["inspect", str(built / "dataset"), *options])
    assert done.exit_code == 0
    assert "not shown: " in done.stderr
    assert "three words here" in (tmp_path / "again.html").read_text(encoding="utf-8")


def test_a_missing_and_a_damaged_file_leave_a_page(built: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(built / "dataset", tmp_path / "dataset"))
    (dataset / "embeddings/small/text/original/two.parquet").unlink()
    (dataset / "embeddings/large/image/sub/one.parquet").write_bytes(b"no Parquet")
    found = inspect_dataset(str(dataset))
    text, _ = written(dataset, tmp_path / "page.html", found, built / "source")
    assert len(articles(text)) == 7
    assert "1 signal incomplete, by up to 1 shard" in text
    assert "embeddings/large/image/sub/one.parquet: " in text
    assert "Nothing wrong was found" not in text


def test_a_build_that_has_just_begun_and_one_without_captions(built: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(built / "dataset", tmp_path / "dataset"))
    for path in dataset.rglob("*.parquet"):
        path.unlink()
    assert "No shards yet" in written(dataset, tmp_path / "page.html", inspect_dataset(str(dataset)))[0]
    write_tar(tmp_path / "bare/a.tar", [("a.png", image_bytes(1)), ("b.png", image_bytes(2))])
    assert not run(fake_plan(captioners=[]), tmp_path / "bare", tmp_path / "captionless").failed
    found = inspect_dataset(str(tmp_path / "captionless"))
    text, _ = written(tmp_path / "captionless", tmp_path / "page.html", found)
    assert articles(text).keys() == {"a", "b"}
    assert "2 samples at random" in text
    assert "lowest" not in text


def test_shards_that_no_sample_is_picked_from(tmp_path: Path) -> None:
    """Look-alikes are fetched from shards without a card; a shard of drops alone has none to fetch."""
    for shard in range(8):
        members = [(f"k{i}.png", image_bytes(i)) for i in range(6)] + [(f"k{i}.txt", b"a caption") for i in range(6)]
        write_tar(tmp_path / f"source/{shard}.tar", members)
    write_tar(tmp_path / "source/none.tar", [("bad.png", b"-"), ("bad.txt", b"-")])
    run(fake_plan(), tmp_path / "source", tmp_path / "dataset")
    text, faults = written(tmp_path / "dataset", tmp_path / "page.html", full_figures(tmp_path / "dataset"))
    assert faults == []
    assert text.count("<article>") > 12


def photograph(index: int, width: int = 400, height: int = 300) -> bytes:
    """Noise at all scales, as much at each, which compresses as badly as a busy photograph."""
    rng = np.random.default_rng(index)
    pixels = np.zeros((height, width, 3), np.float32)
    for side in (4, 8, 16, 32, 64, 128, 256):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        pixels += np.asarray(noise.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return encode(Image.fromarray((pixels / 7).astype(np.uint8)), "JPEG", quality=85)


def test_a_page_of_48_photographs_is_below_5_megabytes(tmp_path: Path) -> None:
    photographs = [photograph(index) for index in range(10)]
    members = [(f"{index:02d}.jpg", photographs[index % 10]) for index in range(50)]
    members += [(f"{index:02d}.txt", b"a caption of some length, such as photographs have") for index in range(50)]
    write_tar(tmp_path / "source/a.tar", members)
    teachers = [FakeTeacher("large", dim=12, image_size=224)]
    plan = fake_plan({"views": {"count": 5}}, teachers=teachers, captioners=[])
    assert not run(plan, tmp_path / "source", tmp_path / "dataset").failed
    text, _ = written(tmp_path / "dataset", tmp_path / "page.html", inspect_dataset(str(tmp_path / "dataset")))
    shown = pictures("".join(articles(text).values()))
    assert len(shown) == 48 * 7
    assert {picture.shape for picture in shown} == {(180, 240, 3), (160, 160, 3)}
    assert len(text.encode()) < MOST_BYTES


def test_every_operation_has_words() -> None:
    box = draw(fake_plan().policy, 0, 1, 40, 30).box
    words = [describe(View(box, ops=(ViewOp(name, 0.5),))).split(", ")[1] for name in OP_NAMES]
    assert len(set(words)) == len(OP_NAMES)
