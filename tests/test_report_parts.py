"""The parts of a report, by hand: which samples are chosen, where marks are drawn, what is remarked on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reinforce.inspection import charts
from reinforce.inspection.cards import CardMaker
from reinforce.inspection.choice import MOST_STEMS, Choice, Ranking, choose, rank_samples
from reinforce.inspection.figures import CaptionFigures, Distribution, DuplicateFigures, Figures, Missing, SampleName
from reinforce.inspection.gallery import make_gallery
from reinforce.inspection.pictures import data_uri, peek, rescue
from reinforce.inspection.plots import Bar, columns_of_integers, number_words, round_ticks
from reinforce.inspection.remarks import remarks
from reinforce.inspection.stats import inspect_dataset
from reinforce.shards.dataset import open_dataset
from tests.fakes import fake_plan, run
from tests.reports import build_everything, full_figures
from tests.tars import image_bytes, pairs, write_tar

NUM_SHARDS, NUM_SAMPLES = 6, 9


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for shard in range(NUM_SHARDS):
        members = pairs(NUM_SAMPLES, 100 * shard)
        # The second sample of each shard has no caption.
        write_tar(folder / f"source/{shard}.tar", [member for member in members if not member[0].endswith("01.txt")])
    assert not run(fake_plan(captioners=[]), folder / "source", folder / "dataset").failed
    return folder / "dataset"


@pytest.fixture(scope="module")
def ranking(dataset: Path) -> Ranking:
    opened = open_dataset(str(dataset))
    return rank_samples(opened, opened.signals, opened.stems, frozenset())


def mean_z(dataset: Path) -> dict[tuple[str, int], float]:
    opened = open_dataset(str(dataset))
    z = []
    for teacher in ("large", "small"):
        views, texts = (
            np.concatenate([opened.numpy(f"embeddings/{teacher}/{what}", s, column) for s in opened.stems])
            for what, column in (("image", "view_000"), ("text/original", "caption_000"))
        )
        views, texts = (rows.astype(np.float64) for rows in (views, texts))
        cosine = (views * texts).sum(axis=1) / np.linalg.norm(views, axis=1) / np.linalg.norm(texts, axis=1)
        z.append((cosine - np.nanmean(cosine)) / np.nanstd(cosine))
    places = [(stem, row) for stem in opened.stems for row in range(NUM_SAMPLES)]
    return dict(zip(places, np.mean(z, axis=0).tolist(), strict=True))


def test_samples_are_ranked_by_their_mean_z_score(dataset: Path, ranking: Ranking) -> None:
    expected = mean_z(dataset)
    assert (ranking.source, ranking.teachers) == ("original", ("large", "small"))
    assert len(ranking.places) == NUM_SHARDS * (NUM_SAMPLES - 1)
    assert all(row != 1 for _, row in ranking.places)
    assert list(ranking.scores) == sorted(ranking.scores)
    assert ranking.scores == pytest.approx([expected[place] for place in ranking.places], abs=1e-5)


def test_a_shard_with_a_bad_file_is_not_ranked_by_that_teacher(dataset: Path) -> None:
    opened = open_dataset(str(dataset))
    bad = frozenset({"embeddings/large/image/0.parquet", "samples/1.parquet"})
    found = rank_samples(opened, opened.signals, opened.stems, bad)
    assert len(found.places) == (NUM_SHARDS - 1) * (NUM_SAMPLES - 1)
    assert "1" not in found.num_kept
    assert {stem for stem, _ in found.places} == {"0", "2", "3", "4", "5"}


def test_no_more_is_ranked_than_was_asked_for(dataset: Path) -> None:
    opened = open_dataset(str(dataset))
    for most_samples, stems in ((NUM_SAMPLES * 2 + 1, ["0", "3"]), (1, ["0"])):
        found = rank_samples(opened, opened.signals, opened.stems, frozenset(), most_samples=most_samples)
        assert list(found.num_kept) == stems


def test_the_ends_come_from_few_shards_and_no_sample_twice(ranking: Ranking) -> None:
    choice = choose(ranking, 24)
    places = [(pick.stem, pick.row) for pick in (*choice.worst, *choice.best, *choice.others)]
    assert (len(choice.worst), len(choice.best), len(choice.others)) == (8, 8, 8)
    assert len(set(places)) == 24
    assert {stem for stem, _ in places} <= set(choice.stems)
    assert len(choice.stems) == MOST_STEMS < NUM_SHARDS
    assert (choice.worst[0].stem, choice.worst[0].row) == ranking.places[0]
    assert (choice.best[0].stem, choice.best[0].row) == ranking.places[-1]
    for picks, order in ((choice.worst, ranking.places), (choice.best, ranking.places[::-1])):
        near = [place for place in order if place[0] in choice.stems]
        assert [(pick.stem, pick.row) for pick in picks] == near[:8]
        assert [order[pick.position - 1] for pick in picks if pick.position] == near[:8]
    assert choose(ranking, 24) == choice


def test_near_duplicates_take_two_more_shards_and_no_others(dataset: Path, ranking: Ranking) -> None:
    chosen = choose(ranking, 3).stems
    elsewhere = sorted({str(shard) for shard in range(NUM_SHARDS)} - set(chosen))
    pair = (
        SampleName(chosen[0], f"{int(chosen[0]) * 100:05d}"),
        SampleName(elsewhere[0], f"{int(elsewhere[0]) * 100:05d}"),
    )
    found = inspect_dataset(str(dataset))
    opened = open_dataset(str(dataset))
    for groups, num_tars in (((), MOST_STEMS), ((pair,), MOST_STEMS + 1)):
        figures = replace(found, duplicates=(DuplicateFigures("large", 0.9, 54, 1, 1, True, groups),))
        gallery = make_gallery(opened, figures, CardMaker(opened, figures), None, 3)
        assert gallery.num_tars == num_tars
        assert [[member.picture is not None for member in group.members] for group in gallery.groups] == [
            [True, True] for _ in groups
        ]


@pytest.mark.parametrize("num_ranked", [0, 1, 2, 5])
def test_few_samples_are_all_shown(num_ranked: int) -> None:
    places = tuple(("a", row) for row in range(num_ranked))
    found = choose(Ranking("original", ("t",), places, tuple(map(float, range(num_ranked))), {"a": num_ranked + 1}), 48)
    assert len(found.worst) == len(found.best) == num_ranked // 3
    assert len(found.worst) + len(found.best) + len(found.others) == num_ranked + 1
    assert isinstance(found, Choice)


def test_words_are_drawn_without_a_comb() -> None:
    found = Distribution.of(np.repeat([1, 2, 3, 5, 9], [4, 2, 1, 1, 8]).astype(np.float64))
    assert found
    heights = {int(low): height for low, width, height in columns_of_integers(found) if width == 1}
    assert heights == {1: 4, 2: 2, 3: 1, 4: 0, 5: 1, 6: 0, 7: 0, 8: 0, 9: 8}
    # Of 50 lengths, equally frequent, some of 24 bins hold two and others three: all are as high.
    found = Distribution.of(np.arange(1, 51, dtype=np.float64))
    assert found
    assert {height for _, _, height in columns_of_integers(found)} == {1}
    captions = CaptionFigures("original", 1, 1, 1.0, 5, 5, 5, 1.0, (), words=Distribution.of(np.full(3, 5.0)))
    assert charts.lengths(captions.words) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.27, 0.55, [-0.2, 0, 0.2, 0.4]),
        (0.9, 0.95, [0.9, 0.91, 0.92, 0.93, 0.94]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    found = round_ticks(low, high)
    assert found[: len(expected)] == pytest.approx(expected)
    assert len(found) <= 6
    assert number_words(-0.001) == "0.00"
    assert number_words(-0.1) == "−0.10"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    folder = tmp_path_factory.mktemp("figures")
    build_everything(folder)
    return full_figures(folder / "dataset")


def test_bars_are_as_long_as_what_they_stand_for(figures: Figures) -> None:
    assert charts.completeness(figures)[0] == Bar("samples", "all 2 shards", 100, 0)
    lacking = replace(figures, missing_shards=Missing(6, ("x", "y")))
    assert charts.completeness(lacking)[0] == Bar("samples", "2 of 8 shards", 25, 75, note="missing x, y, …")
    assert max(bar.good for bar in charts.sizes(figures)) == 100
    drops = {bar.name: bar for bar in charts.drops(figures)}
    assert drops["corrupt_image"] == Bar("corrupt_image", "1 = 8.3 %", bad=100, note="sub/one/cut")
    nulls = {bar.name: bar for bar in charts.nulls(figures)}
    # k1 has no caption: of 7 kept samples with a column for each of 5 captions, all but 6 cells are null.
    found = nulls["no_caption in large/text/original"]
    assert found.bad == pytest.approx(100 * int(found.value.split()[0]) / (7 * figures_columns(figures)))
    assert found.note == "sub/one/k1, …"
    (agreement,) = charts.agreement(figures.agreements)
    assert (agreement.good, agreement.tick) == (50, 25)
    stages = charts.stages(figures.runs[0])
    assert stages == [Bar("decode", "6.0 s = 75 %", 100), Bar("teachers", "2.0 s = 25 %", 100 / 3)]
    assert charts.run_words(figures.runs[0]).endswith(
        "12 samples in 8.0 s by 2 workers, 1.5 a second; still running, or cut short."
    )


def figures_columns(figures: Figures) -> int:
    return next(s.num_columns for s in figures.signals if s.folder == "embeddings/large/text/original")


def test_cosines_of_a_teacher_share_a_scale(figures: Figures) -> None:
    rows = charts.scores([found for found in figures.cosines if found.teacher == "large"])
    assert len(rows) == 2
    assert len({plot.ticks for _, plot in rows}) == 1
    ends = [found.matched.low for found, _ in rows] + [found.matched.high for found, _ in rows]
    ends += [found.mismatched_mean for found, _ in rows if found.mismatched_mean is not None]
    low, high = min(ends), max(ends)
    low, high = low - 0.02 * (high - low), high + 0.02 * (high - low)
    for found, plot in rows:
        assert plot.mean.position == pytest.approx(100 * (found.matched.mean - low) / (high - low))
        assert plot.other
        assert plot.columns[0][0] == pytest.approx(100 * (found.matched.low - low) / (high - low))
        assert sum(left + width > 100 for left, width, _ in plot.columns) == 0
    (dots, _) = (charts.drift_by_view(found) for found in figures.drifts)
    assert dots
    assert {level.words: level.position for level in dots.levels}["1.0"] == 0
    left, top, words = dots.dots[1]
    assert (left, words) == (75, "view 2: 0.75")
    assert top == pytest.approx(100 * 0.25 / 0.6)  # from 0.4, below the lowest, to 1


def test_what_is_remarked_on(figures: Figures) -> None:
    found = remarks(figures)
    assert found == ["Shard sub/<s> failed: cannot be <em>read</em>", "5 of 12 samples could not be used"]
    worse = replace(
        figures,
        failures={str(n): "x" for n in range(7)},
        num_failures=70,
        missing_shards=Missing(3),
        signals=tuple(replace(s, nulls={"non_finite": 1}, missing=Missing(2)) for s in figures.signals[:1]),
        doubts=("a doubt",),
    )
    assert remarks(worse)[5:] == [
        "65 more shards failed",
        "3 source shards not built: no samples/ for them",
        "1 signal incomplete, by up to 2 shards: a build is running, or was cut short",
        "a doubt",
        f"{figures.signals[0].folder}: 1 value not finite, stored as null",
        "5 of 12 samples could not be used",
    ]


def test_pictures_are_exact_when_small_and_bounded_when_large() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    assert data_uri(noise[:64, :64]).startswith("data:image/png;")
    assert len(data_uri(noise)) < 15_000
    assert peek(b"\xff\xd8\xff") == "ff d8 ff"
    assert peek(b"<html>" + 100 * b"x").endswith("x …")
    assert rescue(b"no image") is None
    assert rescue(image_bytes(1, 40, 30, "JPEG")[:-100]) is not None
