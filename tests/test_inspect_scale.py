"""What `reinforce inspect` finds in planted data, reads of a large dataset, and makes of a running build."""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from reinforce.captioners import FakeCaptioner
from reinforce.inspection import sampling, stats
from reinforce.inspection.doubts import find_doubts
from reinforce.inspection.figures import AgreementFigures, Distribution, Figures, Missing, SampleName
from reinforce.inspection.listing import list_dataset
from reinforce.inspection.stats import inspect_dataset
from reinforce.inspection.table import render_table
from reinforce.shards import writer
from reinforce.shards.dataset import Dataset, open_dataset
from reinforce.shards.reader import FormatError
from reinforce.shards.schema import Signal
from reinforce.storage import ObjectInfo, Store, open_store
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_plan, run
from tests.s3_server import S3Server, use_test_credentials
from tests.tars import encode, write_tar

ROW_GROUP_ROWS = 8


def checks(seed: int) -> bytes:
    """An image of 4 x 4 cells, each channel black or white: unlike that of any other seed to the fake teacher."""
    cells = np.random.default_rng(seed).integers(0, 2, (4, 4, 3), np.uint8) * 255
    return encode(Image.fromarray(cells.repeat(6, axis=0).repeat(6, axis=1)))


class Copying(FakeCaptioner):
    """Repeats the original, but for case and the full stop, and says one thing of all images."""

    def caption(self, requests: Any) -> list[list[str]]:
        return [[] if request.key == "c07" else [f"PICTURE  {request.key}", "a thing"] for request in requests]


def _shard(letter: str, seed: int) -> Iterator[tuple[str, bytes]]:
    """20 samples in three row groups; the last of `c` is an image of `a` again; `b` has a broken one at its end."""
    for index in range(20):
        key = f"{letter}{index:02d}"
        yield f"{key}.png", checks(3) if key == "c19" else checks(seed + index)
        if key != "a01":
            yield f"{key}.txt", f"Picture {key}.".encode()
    if letter == "b":
        yield "b20.png", b"no image"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of shards a, b and c, built in two runs."""
    folder = tmp_path_factory.mktemp("planted")
    tars = [
        write_tar(folder / f"source/{letter}.tar", _shard(letter, 100 * number)) for number, letter in enumerate("abc")
    ]
    teachers = [FakeTeacher("one", dim=32, image_size=24), FakeTeacher("two", dim=12, image_size=24)]
    plan = fake_plan(teachers=teachers, captioners=[Copying("copying", image_size=16)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_ROW_GROUP_ROWS", ROW_GROUP_ROWS)
        for uris in ([str(tars[0])], [str(folder / "source")]):
            run(plan, uris, folder / "dataset", source_root=str(folder / "source"))
    return folder / "dataset"


@pytest.fixture
def copy(planted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planted, tmp_path / "dataset"))


@pytest.fixture(scope="module")
def figures(planted: Path) -> Figures:
    return inspect_dataset(str(planted))


def screen(figures: Figures) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=80).print(render_table(figures))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def words(figures: Figures) -> str:
    return " ".join(" ".join(screen(figures)).split())


def test_a_planted_duplicate_is_found_where_it_is(planted: Path, figures: Figures) -> None:
    (found,) = figures.duplicates
    assert (found.teacher, found.num_images, found.is_full) == ("one", 60, True)
    assert (found.num_groups, found.num_duplicates) == (1, 1)
    assert found.groups == ((SampleName("a", "a03"), SampleName("c", "c19")),)
    assert "1 of 60 images (1.7 %) repeat another" in words(figures)
    few = inspect_dataset(str(planted), num_sampled=2)
    assert (few.duplicates[0].num_images, few.duplicates[0].num_duplicates) == (40, 0)
    assert not few.duplicates[0].is_full
    assert inspect_dataset(str(planted), num_sampled=1, is_full=True).duplicates == figures.duplicates


def test_agreement_is_that_of_brute_force(planted: Path, figures: Figures) -> None:
    nearest = []
    for teacher in ("one", "two"):
        files = [planted / f"embeddings/{teacher}/image/{stem}.parquet" for stem in "abc"]
        cells = [cell for path in files for cell in pq.read_table(path)["view_000"].to_pylist()]
        rows = np.array(cells, np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -2)
        nearest.append([set(order[-10:].tolist()) for order in np.argsort(cosines)])
    overlap = float(np.mean([len(a & b) / 10 for a, b in zip(*nearest, strict=True)]))
    (found,) = figures.agreements
    assert found == AgreementFigures(("one", "two"), 60, 10, found.overlap, 10 / 59)
    assert found.overlap == pytest.approx(overlap)


@pytest.mark.parametrize("teacher", ["one", "two"])
def test_a_shard_that_one_teacher_lacks_shifts_nothing(copy: Path, figures: Figures, teacher: str) -> None:
    (copy / f"embeddings/{teacher}/image/a.parquet").unlink()
    found = inspect_dataset(str(copy))
    assert found.agreements[0].num_images == 40
    few = inspect_dataset(str(copy), num_sampled=2)  # the shards that have everything go first
    assert few.sampled_stems == ("b", "c")
    assert few.agreements == found.agreements
    assert (figures.incomplete, found.incomplete) == (Missing(0), Missing(1, ("a",)))
    assert "2 of 3 shards have all 7 signals" in words(found)
    assert f"{teacher}/image: 1 shard (a)" in words(found)


def test_captions_that_repeat_the_original_are_counted(figures: Figures) -> None:
    original, copying = figures.captions
    assert (original.num_samples, original.num_samples_without, original.num_copies) == (60, 1, 0)
    # c07 has no caption, a01 no original that could be repeated.
    assert (copying.num_captions, copying.num_samples_without, copying.num_copies) == (118, 1, 58)
    assert original.words is not None
    assert (original.words.mean, original.words.count) == (2.0, 59)


def test_nulls_that_no_missing_caption_explains_are_named_apart(copy: Path, figures: Figures) -> None:
    assert figures.null_examples["captions/copying"] == {"captioner_failed": (SampleName("c", "c07"),)}
    assert figures.null_examples["embeddings/one/text/copying"] == {"no_caption": (SampleName("c", "c07"),)}
    folder = "embeddings/one/text/original"
    assert figures.null_examples[folder]["no_caption"][0] == SampleName("a", "a01")  # whose first caption is missing
    path = copy / folder / "c.parquet"
    table = pq.read_table(path)
    column = table["caption_000"].to_pylist()
    footer = json.loads(pq.read_metadata(path).metadata[b"reinforce"])
    footer["nulls"]["non_finite"] = 1
    field = table.schema.field("caption_000")
    edited = pa.array([None if row == 11 else cell for row, cell in enumerate(column)], field.type)
    table = table.set_column(table.schema.get_field_index("caption_000"), field, edited)
    pq.write_table(table.replace_schema_metadata({b"reinforce": json.dumps(footer)}), path, write_page_checksum=True)
    found = inspect_dataset(str(copy))
    assert found.null_examples[folder]["non_finite"] == (SampleName("c", "c11"),)
    assert "1 non_finite in one/text/original: c/c11" in words(found)


def test_more_shards_than_footers_are_scaled_up_and_said_to_be(
    copy: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MOST_FOOTER_SHARDS", 2)
    path = copy / "embeddings/one/image/c.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    found = inspect_dataset(str(copy), num_sampled=1)
    assert (found.num_footer_shards, found.is_estimated, found.problems) == (2, True, ())
    assert (found.num_samples, found.num_kept) == (62, 60)  # 20 and 21 samples, 40 kept, in two of three shards
    assert {drop.reason: drop.count for drop in found.drops} == {"not_an_image": 2}
    assert found.total_bytes == figures.total_bytes - 20
    assert "3 shards, ~62 samples, ~60 kept, ~2 dropped" in words(found)
    assert "scaled up from the footers of 2 shards" in words(found)
    full = inspect_dataset(str(copy), num_sampled=1, is_full=True)
    assert [problem.path for problem in full.problems] == ["embeddings/one/image/c.parquet"]
    assert (full.num_samples, full.is_estimated) == (61, False)


def test_no_more_rows_are_read_than_said(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MOST_ROWS", 24)
    path = copy / "embeddings/one/image/a.parquet"
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(1).column(1)
    data[column.data_page_offset + column.total_compressed_size - 4] ^= 1
    path.write_bytes(data)
    with open_dataset(str(copy)).open("embeddings/one/image", "a") as file:
        assert file.head(["key", "view_000"], ROW_GROUP_ROWS).num_rows == ROW_GROUP_ROWS
        with pytest.raises(FormatError, match="damaged"):
            file.head(["view_000"], ROW_GROUP_ROWS + 1)
    found = inspect_dataset(str(copy))
    assert (found.num_sampled_samples, found.problems) == (24, ())
    assert found.captions[0].num_samples == found.drifts[0].cosine.count / 2 == 24
    # The dropped row and the null caption lie beyond the sampled ones, and are named all the same.
    assert [(drop.reason, drop.examples[0].key) for drop in found.drops] == [("not_an_image", "b20")]
    monkeypatch.setattr(sampling, "MOST_ROWS", 12)
    assert inspect_dataset(str(copy)).null_examples["captions/copying"] == {
        "captioner_failed": (SampleName("c", "c07"),)
    }


def test_shards_are_chosen_evenly_and_the_more_the_smaller_they_are(planted: Path) -> None:
    listing = list_dataset(open_dataset(str(planted)))
    many = replace(
        listing,
        stems=[f"{number:05d}" for number in range(4096)],
        spine_bytes=np.zeros(4096, np.int64),
        signal_bytes=dict.fromkeys(listing.signals, np.zeros(4096, np.int64)),
    )
    assert sampling.value_shards(many, 10_000, 16) == sampling.ValueSample(list(range(0, 4096, 512)), 1024)
    assert sampling.value_shards(many, 100, 16) == sampling.ValueSample(list(range(0, 4096, 256)), 512)
    assert sampling.value_shards(listing, 10_000, 16) == sampling.ValueSample([0, 1, 2], 2730)
    assert sampling.footer_shards(many, is_full=False) == list(range(0, 4096, 4))


class Meanwhile:
    """A store to which `arriving` is moved while it is listed, after the folder of spines has gone by."""

    def __init__(self, store: Store, folder: Path, arriving: Path) -> None:
        self._store, self._folder, self._arriving = store, folder, arriving

    def list(self, prefix: str = "", *, recursive: bool = True) -> Iterator[ObjectInfo]:
        before = {info.path: info for info in self._store.list()}
        shutil.copytree(self._arriving, self._folder, dirs_exist_ok=True)
        after = {info.path: info for info in self._store.list()}
        new = [path for path in sorted(after.keys() - before.keys()) if path.endswith(".parquet")]
        yield from before.values()
        yield from (after[path] for path in new if not path.startswith("samples/"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_what_a_running_build_commits_between_two_folders_is_no_fault(copy: Path, tmp_path: Path) -> None:
    arriving = tmp_path / "arriving"
    for path in {*copy.rglob("c.parquet"), *(copy / "embeddings/two/image").iterdir()}:
        target = arriving / path.relative_to(copy)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    dataset = open_dataset(str(copy))
    listing = list_dataset(Dataset(Meanwhile(dataset.store, copy, arriving), dataset.document))
    assert listing.problems == []
    assert listing.stems == ["a", "b"]
    # A signal whose folder and signal.json came too late for the listing, all but its files.
    assert listing.num_files(Signal.parse("embeddings/two/image")) == 2
    (copy / "samples/c.parquet").unlink()
    paths = [problem.path for problem in list_dataset(open_dataset(str(copy))).problems]
    assert len(paths) == 7
    assert "embeddings/two/image/c.parquet" in paths


def test_runs_add_up(figures: Figures) -> None:
    # Both may have begun in one second.
    first, second = sorted(figures.runs, key=lambda run: run.num_samples)
    assert [(run.num_samples, run.num_shards, run.num_failed) for run in (first, second)] == [(20, 1, 0), (41, 2, 0)]
    assert first.end is not None
    assert set(first.stages) >= {"decode", "render", "teachers", "write"}
    assert figures.cost is not None
    assert (figures.cost.num_runs, figures.cost.num_samples) == (2, 61)
    assert figures.cost.stages["teachers"] == pytest.approx(first.stages["teachers"] + second.stages["teachers"])
    data = figures.to_json()
    assert data["cost"]["stages_s_per_1000_samples"]["write"] == pytest.approx(
        1000 * data["cost"]["stages_s"]["write"] / 61
    )
    assert first.stages in [run["stages_s"] for run in data["runs"]]


def test_a_run_on_a_cluster_that_was_killed(copy: Path) -> None:
    events: list[dict[str, Any]] = [
        {"event": "start", "hardware": {"machine": "x86_64", "num_cpus": 4, "gpus": []}},
        {"event": "worker", "worker": "w0", "gpu": "H100"},
        {"event": "worker", "worker": "w1", "gpu": "H100"},
        {"event": "worker_lost", "worker": "w0"},
        {"event": "worker", "worker": "w2", "gpu": "H100"},
        {"event": "failed", "stem": "x", "error": "-"},
        {"event": "failed", "stem": "y", "error": "-"},
        {"event": "shard", "stem": "x", "num_samples": 7},
        {"event": "of a later version"},
    ]
    folder = copy / "runs" / "29990101T000000Z-00"
    folder.mkdir()
    lines = [json.dumps({"time": f"2999-01-01T00:00:{n:02d}Z"} | event) for n, event in enumerate(events)]
    (folder / "00000.jsonl").write_text("\n".join(lines[:4]))
    (folder / "00001.jsonl").write_text("\n".join(lines[4:]))
    (folder / "00002.jsonl").write_text("[1]\n")
    figures = inspect_dataset(str(copy))
    found = figures.runs[-1]
    assert (found.end, found.elapsed_s, found.num_workers, found.hardware) == (None, 8.0, 2, "2 x H100")
    assert (found.num_shards, found.num_failed, found.num_samples, found.stages) == (1, 1, 7, {})
    assert "2999-01-01 00:00, 8 s: 7 samples, 1 shard, 1 failed, 2 workers (2 x H100), no end" in words(figures)
    assert figures.cost is not None
    assert (figures.cost.num_samples, figures.cost.num_timed_samples) == (68, 61)
    assert [problem.what for problem in figures.problems] == ["line 1 is not an event of a run"]


def test_of_many_failures_few_are_read_and_all_counted(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_MOST_FAILURES", 5)
    (copy / "failures").mkdir()
    for number in range(7):
        (copy / f"failures/{number}.json").write_text('{"error": "is truncated"}')
    found = inspect_dataset(str(copy))
    assert (found.num_failures, len(found.failures)) == (7, 5)
    assert "2: is truncated and 4 more, see --json" in words(found)


def _cosines(*values: float) -> Distribution:
    found = Distribution.of(np.array(values))
    assert found
    return found


def test_what_looks_wrong_is_said(figures: Figures) -> None:
    def doubts(**changes: Any) -> list[str]:
        return list(find_doubts(replace(sound, **changes), {"embeddings/one/image": 7}))

    signal = next(signal for signal in figures.signals if signal.folder == "embeddings/one/image")
    drift, cosine, copying = figures.drifts[0], figures.cosines[0], figures.captions[1]
    copying = replace(copying, num_captions=1000, distinct_ratio=0.6, num_copies=200)
    cosine = replace(cosine, source="copying", matched=_cosines(0.3, 0.4), mismatched_mean=0.1)
    drift = replace(drift, by_view=(0.8, 0.7), mismatched_mean=0.4)
    sound = replace(figures, signals=(signal,), cosines=(cosine,), drifts=(drift,), captions=(copying,), agreements=())
    assert doubts() == []
    assert "more than 7 mantissa bits explain" in doubts(signals=(replace(signal, max_norm_error=0.0041),))[0]
    assert doubts(signals=(replace(signal, max_norm_error=0.0039),)) == []
    assert "cut" in doubts(signals=(replace(signal, num_values=100, num_truncated_texts=11),))[0]
    assert "hardly better" in doubts(cosines=(replace(cosine, mismatched_mean=0.35),))[0]
    assert "view 2: no nearer" in doubts(drifts=(replace(drift, by_view=(0.8, 0.4)),))[0]
    assert "only 4.0 % of its captions" in doubts(captions=(replace(copying, distinct_ratio=0.04),))[0]
    assert "51.0 % of its captions" in doubts(captions=(replace(copying, num_copies=510),))[0]
    assert doubts(captions=(replace(copying, source="original", distinct_ratio=0.04),)) == []
    agreement = AgreementFigures(("one", "two"), 2048, 10, 0.009, 0.005)
    assert "hardly more than chance" in doubts(agreements=(agreement,))[0]


def test_it_is_one_screen_of_80_columns(figures: Figures) -> None:
    lines = screen(figures)
    assert max(map(len, lines)) <= 80
    assert lines.index("LOOKS WRONG") < lines.index(next(line for line in lines if line.startswith("signal ")))
    assert figures.cost is not None
    # Where the dataset lies and how long it took are no matter of the screen, but may take a line each.
    stages = dict.fromkeys(figures.cost.stages, 0.125)
    cost = replace(figures.cost, stages=stages, stages_per_1000=stages)
    shown = replace(figures, uri="file:///data/reinforced", doubts=(), runs=figures.runs[:1], cost=cost)
    assert len(screen(shown)) <= 45


def test_a_bucket_gives_the_same_figures(
    planted: Path, figures: Figures, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_test_credentials(monkeypatch, server.endpoint)
    server.make_bucket("planted")
    target = open_store("s3://planted/dataset", create=True)
    for path in planted.rglob("*"):
        if path.is_file():
            target.put_if_absent(str(path.relative_to(planted)), path)
    assert replace(inspect_dataset("s3://planted/dataset"), uri=figures.uri) == figures
