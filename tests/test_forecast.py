"""A forecast against the build it is a forecast of, and its arithmetic on a trial made up by hand."""

import hashlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from reinforce import runners
from reinforce.cli import app
from reinforce.config import BuildConfig, ConfigError, load_recipe
from reinforce.plan import BuildOutline, BuildPlan, load_plan
from reinforce.runners import Forecast, describe_forecast
from reinforce.runners.asked import find_sentences
from reinforce.runners.command import existing_files
from reinforce.runners.extrapolation import FETCH, MODELS, PREPARE, WRITE, extrapolate
from reinforce.runners.forecast import forecast
from reinforce.runners.trial import FileSize, Trial, Trials, Work
from reinforce.runners.worker import Job, Lease
from reinforce.selection import Selection, read_selection
from reinforce.shards.dataset import DatasetMismatchError
from reinforce.storage import find_shards, open_store
from reinforce.teachers import FakeTeacher
from tests.clusters import CONFIG, RayNodes, load_fakes
from tests.fakes import fake_plan, files_of, run
from tests.models import save_open_clip
from tests.tars import pairs, write_tar

NUM_FILES = 8
"""Of a shard: the spine, captions, and for each of two teachers the images, the original and the written captions."""


def write_shards(folder: Path, stems: str, num_samples: int) -> Path:
    for index, stem in enumerate(stems):
        write_tar(folder / f"{stem}.tar", pairs(num_samples, start=100 * index))
    return folder


def plan_of(settings: dict[str, Any] | None = None, **narrowing: Any) -> Any:
    return load_fakes(BuildConfig.model_validate(CONFIG | (settings or {})), **narrowing)


def forecast_of(
    source: Path | str,
    output: Path,
    settings: dict[str, Any] | None = None,
    *,
    selection: Selection | None = None,
    limit_samples: int | None = None,
    load: Any = load_fakes,
    trial_s: float = 0,
    **options: Any,
) -> Forecast:
    config = BuildConfig.model_validate(CONFIG | (settings or {}))
    root, refs = find_shards([str(source)])
    store = open_store(str(output))
    job = Job(config, root, store.uri, limit_samples, selection, load=load)
    existing = existing_files(store, BuildOutline(config))
    console = Console(file=io.StringIO())
    return forecast(job, refs, existing, trial_s=trial_s, console=console, **options)


def built(output: Path) -> dict[str, int]:
    """What a forecast counts: not `runs/` and the card, which are for people, nor banks, which are small."""
    left_out = ("README.md", "banks/")
    return {path: len(data) for path, data in files_of(output).items() if not path.startswith(left_out)}


def test_a_part_of_one_shard_tells_of_all(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "abcd", 60)
    planned = forecast_of(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    summary = run(plan_of(), source, tmp_path / "out")
    # Four batches at least, and whole ones: more are on their way when there have been enough.
    assert planned.num_tried in range(16, 60, 4)
    assert planned.num_tried_shards == 1
    assert summary.done.num_samples == summary.done.num_kept == 240
    assert planned.num_samples == planned.num_kept == pytest.approx(240, abs=2)
    assert planned.num_objects == len(built(tmp_path / "out")) == 4 * NUM_FILES + 1 + 7
    assert planned.bytes_read == sum(path.stat().st_size for path in source.iterdir())
    # 16 rows of 8 values do not compress as 60 do.
    assert planned.bytes_written == pytest.approx(sum(built(tmp_path / "out").values()), rel=0.15)
    assert {stage for stage, seconds in planned.stage_s.items() if seconds > 0} == {*planned.stage_s}


def test_shards_smaller_than_a_batch(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "abcdefgh", 3)
    planned = forecast_of(source, tmp_path / "out")
    run(plan_of(), source, tmp_path / "out")
    assert (planned.num_samples, planned.num_tried_shards) == (24, 4)
    assert planned.bytes_written == pytest.approx(sum(built(tmp_path / "out").values()), rel=0.02)


def test_a_single_batch(tmp_path: Path) -> None:
    planned = forecast_of(write_shards(tmp_path / "in", "a", 3), tmp_path / "out")
    assert (planned.num_samples, planned.num_tried, list(planned.wall_s)) == (3, 3, [1])
    assert all(seconds > 0 for seconds in planned.stage_s.values())
    assert sum(planned.stage_s[stage] for stage in ("captioner", "teachers")) <= planned.wall_s[1]


def test_only_what_is_missing_counts(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "abcd", 20)
    run(plan_of(), source, tmp_path / "out")
    for name in ("embeddings/small/image/b", "embeddings/small/image/c", "embeddings/small/text/fake/c"):
        (tmp_path / "out" / f"{name}.parquet").unlink()
    for path in (tmp_path / "out").rglob("d.parquet"):
        path.unlink()
    before = built(tmp_path / "out")
    planned = forecast_of(source, tmp_path / "out")
    assert built(tmp_path / "out") == before
    assert (planned.num_missing, planned.num_objects) == (3, 3 + NUM_FILES)
    summary = run(plan_of(), source, tmp_path / "out")
    assert (planned.num_samples, planned.num_objects) == (summary.done.num_samples, summary.done.num_files)
    assert planned.bytes_written == pytest.approx(summary.done.num_bytes, rel=0.05)


def test_texts_alone_need_no_source(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "ab", 20)
    run(plan_of(), source, tmp_path / "out")
    for path in (tmp_path / "out" / "embeddings").rglob("text/fake/*.parquet"):
        path.unlink()
    planned = forecast_of(source, tmp_path / "out")
    assert (planned.num_samples, planned.bytes_read, planned.num_objects) == (40, 0, 4)
    assert planned.stage_s["fetch"] == planned.stage_s["decode"] == 0 < planned.stage_s["teachers"]


def test_a_modality_alone_needs_the_source_and_no_model(tmp_path: Path) -> None:
    source, settings = write_shards(tmp_path / "in", "ab", 20), {"modalities": {"depth": "depth.png"}}
    run(plan_of(settings), source, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "modalities")
    planned = forecast_of(source, tmp_path / "out", settings)
    assert (planned.num_samples, planned.num_objects) == (40, 2 + 1)
    assert planned.bytes_read == sum(path.stat().st_size for path in source.iterdir())
    assert planned.stage_s["teachers"] == 0 < planned.stage_s["decode"]


def test_nothing_is_missing(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "a", 3)
    run(plan_of(), source, tmp_path / "out")
    planned = forecast_of(source, tmp_path / "out", load=None)
    assert (planned.num_missing, planned.num_objects) == (0, 0)
    assert describe_forecast(planned) == "nothing is missing: 1 of 1 shards are complete"


def test_drops_are_scaled(tmp_path: Path) -> None:
    for stem in "ab":
        members = [(name, b"<html>" if name in ("00001.png", "00003.png") else data) for name, data in pairs(8)]
        write_tar(tmp_path / "in" / f"{stem}.tar", members)
    planned = forecast_of(tmp_path / "in", tmp_path / "out")
    assert (planned.num_samples, planned.num_kept) == (16, 12)


def test_a_limit_and_a_selection_are_heeded(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "abc", 40)
    rows = [{"stem": stem, "key": f"{100 * i + k:05d}"} for i, stem in enumerate("abc") for k in range(0, 40, 4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "some.parquet")
    for narrowing in ({"limit_samples": 12}, {"selection": read_selection(str(tmp_path / "some.parquet"))}):
        planned = forecast_of(source, tmp_path / "out", **narrowing)
        output = tmp_path / next(iter(narrowing))
        summary = run(plan_of(**narrowing), source, output)
        assert planned.num_samples == pytest.approx(120, abs=2)
        assert planned.num_kept == summary.done.num_kept
        assert planned.bytes_written == pytest.approx(sum(built(output).values()), rel=0.05)


def test_a_damaged_shard_is_passed_over(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "abc", 20)
    (source / "b.tar").write_bytes((source / "b.tar").read_bytes()[:20_000])
    planned = forecast_of(source, tmp_path / "out")
    assert planned.num_missing == 3
    for stem in "abc":
        (source / f"{stem}.tar").write_bytes(b"<html>")
    with pytest.raises(ConfigError, match=r"^--plan: no shard can be tried; .: is not a tar"):
        forecast_of(source, tmp_path / "out")


def test_a_recipe_that_is_not_the_outputs_is_refused(tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "ab", 4)
    run(plan_of(), source, tmp_path / "out", retry_failed=True)
    with pytest.raises(DatasetMismatchError, match=f"^file://{tmp_path}/out/dataset.json was made differently"):
        forecast_of(source, tmp_path / "out", {"seed": 1}, load=None)
    with pytest.raises(DatasetMismatchError, match=f"^file://{tmp_path}/out/banks/things/bank.json was made"):
        forecast_of(source, tmp_path / "out", {"banks": {"things": {"labels": ["cow"]}}}, load=None)


def test_sentences_are_tried_and_the_rest_is_told_by_bytes(tmp_path: Path) -> None:
    """Half of the records are dropped; then a teacher's files are missing, and the source is gone."""
    for stem in "abc":
        lines = [f"{hashlib.sha256(f'{stem}{index}'.encode()).hexdigest()}\n\n" for index in range(600)]
        (tmp_path / f"{stem}.txt").write_text("".join(lines))
    settings = {"views": {"count": 0}, "teachers": {name: {"model": "fake"} for name in ("large", "small")}}
    config = BuildConfig.model_validate(settings | {"corpora": {"web": {"files": f"{tmp_path}/*.txt"}}})
    output = tmp_path / "out"

    def planned(**narrowing: Any) -> Forecast:
        store = open_store(str(output))
        found = find_sentences(config, store)
        job = Job(config, "file:///nowhere", store.uri, load=load, corpus_roots=found.roots, **narrowing)
        outline = load(config)
        return forecast(job, found.refs, existing_files(store, outline), trial_s=0, console=Console(file=io.StringIO()))

    def load(config: BuildConfig, **narrowing: Any) -> BuildPlan:
        teachers = [FakeTeacher(name, dim=256) for name in ("large", "small")]
        return fake_plan(config.model_dump(), teachers=teachers, captioners=[], **narrowing)

    (corpus,) = planned().corpora
    assert not output.exists()
    # One batch of one file, and the whole file counted.
    assert (corpus.num_sentences, corpus.num_tried) == (1800, 128)
    assert corpus.teachers_s > 0
    assert planned(limit_samples=10).corpora[0].num_sentences == 15
    store = open_store(str(output), create=True)
    found = find_sentences(config, store)
    options: dict[str, Any] = {"source_root": "file:///nowhere", "corpus_roots": found.roots}
    console = Console(file=io.StringIO())
    summary = runners.run_plan(load(config), found.refs, store, console=console, **options)
    # What every file has weighs more in one of 128 sentences.
    assert corpus.bytes_written == pytest.approx(summary.done.num_bytes, rel=0.15)
    shutil.rmtree(output / "corpora/web/embeddings/small")
    for stem in "abc":
        (tmp_path / f"{stem}.txt").unlink()
    (corpus,) = planned().corpora
    assert (corpus.is_stored, corpus.num_sentences, corpus.num_tried) == (True, 1800, 256)
    shown = describe_forecast(replace(planned(), corpora=(replace(corpus, teachers_s=9.0, bytes_written=5_200_000),)))
    assert "corpus web: 3 of 3 files of sentences lack something" in shown
    assert "of sentences that the dataset holds" in shown
    assert "    1,800 sentences take the teachers 9.0 s (200 a second), 5.2 MB are written" in shown


def test_a_corpus_of_which_nothing_can_be_tried(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"<html>")
    config = BuildConfig.model_validate(CONFIG | {"corpora": {"web": {"files": str(tmp_path / "a.jsonl.gz")}}})
    found = find_sentences(config, open_store(str(tmp_path / "out")))
    job = Job(config, "file:///nowhere", f"file://{tmp_path}/out", load=load_fakes, corpus_roots=found.roots)
    with pytest.raises(
        ConfigError, match=r"^--plan: no file of sentences can be tried; corpora/web/a: is cut or damaged"
    ):
        forecast(job, found.refs, set(), trial_s=0, console=Console(file=io.StringIO()))


TRIAL = Trial(
    folders=frozenset(["samples", "embeddings/t/image"]),
    num_shards=1,
    num_samples=40,
    needs_source=True,
    samples_per_byte=0.01,
    kept_share=0.9,
    sizes={"samples": FileSize(90, 10, 2), "embeddings/t/image": FileSize(45, 5, 10)},
    fetch_s_per_byte=1e-5,
    decode_s=0.1,
    render_s=0.2,
    captioner_s=0.0,
    teachers_s=0.5,
    write_s=0.01,
    commit_s=1.0,
    first_batch_s=9.0,
    busy_share=0.8,
)
TRIALS = Trials("CPU", 2, 5.0, 12.0, {"dataset.json": 1000}, (TRIAL,))
WORK = Work(TRIAL.folders, (Lease("a.tar", "a", 1000), Lease("b.tar", "b", 1000), Lease("c.tar", "c", 2000)))
OUTLINE = BuildOutline(BuildConfig.model_validate({"batch_size": 8}))


def of_shard(num_padded: int) -> float:
    return 0.5 * num_padded / 0.8


def test_the_arithmetic() -> None:
    """10 samples in a small shard, 9 kept, two batches of 8; 20 in the large one, 18 kept, three batches."""
    found = extrapolate(OUTLINE, [WORK], TRIALS, num_shards=4, max_workers=2, price_per_hour=3600.0)
    assert (found.num_shards, found.num_missing, found.num_samples, found.num_kept) == (4, 3, 40, 36)
    assert (found.bytes_read, found.bytes_written, found.num_objects) == (4000, 450 + 80 + 360 + 1000, 7)
    stages = {"fetch": 0.04, "decode": 4.0, "render": 8.0, "captioner": 0.0, "teachers": 28.0, "write": 3.36}
    assert found.stage_s == pytest.approx(stages)
    start_s = 5 + 0.04 / 3 + 9 - 8 * 0.5 / 0.8
    small, large = of_shard(16), of_shard(24)
    assert found.start_s == pytest.approx(start_s)
    assert found.wall_s == pytest.approx(
        {1: start_s + 2 * small + large, 2: start_s + 2 * small, 3: start_s + max(small, large)}
    )
    assert found.cost(2) == pytest.approx(2 * found.wall_s[2])
    assert (found.num_workers, found.bottleneck) == (2, MODELS)
    assert found.cores_per_device == pytest.approx(12 / 28)


@pytest.mark.parametrize(
    ("changed", "bottleneck"),
    [
        ({"render_s": 9.0}, PREPARE),
        ({"fetch_s_per_byte": 1.0}, FETCH),
        ({"teachers_s": 0.0, "write_s": 9.0}, WRITE),
        ({"teachers_s": 2.0}, MODELS),
    ],
)
def test_the_slowest_part_sets_the_pace(changed: dict[str, float], bottleneck: str) -> None:
    trials = replace(TRIALS, trials=(replace(TRIAL, **changed),))  # type: ignore[arg-type]
    found = extrapolate(OUTLINE, [WORK], trials, num_shards=3)
    assert found.bottleneck == bottleneck
    assert bottleneck in describe_forecast(found)
    assert found.cost(1) is None


def test_work_that_was_not_tried_is_taken_for_the_most_like_it() -> None:
    other = replace(TRIAL, folders=TRIAL.folders | {"captions/c"}, teachers_s=50.0)
    other = replace(other, sizes=other.sizes | {"captions/c": FileSize(6, 1, 1)})
    lone = Work(frozenset(["samples", "captions/c"]), WORK.shards[:1])
    trials = replace(TRIALS, trials=(TRIAL, other), document_bytes={})
    found = extrapolate(OUTLINE, [lone], trials, num_shards=1)
    assert (found.stage_s["teachers"], found.bytes_written, found.num_objects) == (800.0, 100 + 20 + 7 + 9, 2)


def test_the_text() -> None:
    text = describe_forecast(extrapolate(OUTLINE, [WORK], TRIALS, num_shards=4, price_per_hour=3600.0))
    assert "something is missing of 3 of 4 shards" in text
    assert "samples              40   36 kept" in text
    assert "written          1.9 kB   in 7 objects" in text
    assert "teachers         28.0 s   device" in text
    assert "captioner" not in text
    assert "takes 0.4 cores for decode and render; it has 2" in text
    assert "Estimated from 40 samples of 1 shard, in 12 s on CPU" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_open_clip(tmp_path / "teacher")
    recipe = {"build": {"batch_size": 4, "views": {"count": 1}, "teachers": {"t": {"model": "local-dir:teacher"}}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_shards(tmp_path / "in", "ab", 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command(workspace: Path) -> None:
    command = ["build", "--shards", "in", "--recipe", "recipe.yaml", "--output", "out"]
    result = CliRunner().invoke(app, [*command, "--plan", "--price-per-hour", "2"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert "samples              16   16 kept" in result.stdout
    assert "wall time          cost" in result.stdout
    assert not (workspace / "out").exists()
    result = CliRunner().invoke(app, [*command, "--price-per-hour", "2"], catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (2, "reinforce: --price-per-hour: goes with --plan\n")
    assert not (workspace / "out").exists()


def test_a_worker_of_a_cluster_makes_the_trial(cluster: RayNodes, tmp_path: Path) -> None:
    source = write_shards(tmp_path / "in", "abc", 12)
    planned = forecast_of(source, tmp_path / "out", address=cluster.address, uris=[str(source)])
    assert (planned.num_samples, planned.num_objects) == (36, 3 * NUM_FILES + 8)
    (tmp_path / "out").mkdir()
    run(plan_of(), source, tmp_path / "out", retry_failed=True)
    with pytest.raises(DatasetMismatchError, match=f"^file://{tmp_path}/out/dataset.json was made differently"):
        forecast_of(source, tmp_path / "out", {"seed": 1}, address=cluster.address)


def test_a_forecast_of_real_images_and_teachers(shared: Path, tmp_path: Path) -> None:
    overrides = ["build.views.count=0"]
    config = load_recipe("cifar10", overrides).build
    source, output = f"{shared}/data/cifar10/train/{{00000..00001}}.tar", tmp_path / "out"
    planned = forecast_of(source, output, config.model_dump(), load=load_plan)
    summary = runners.build(source, str(output), "cifar10", overrides=overrides)
    assert planned.num_tried in range(4 * 64, 1000, 64)
    assert planned.num_samples == pytest.approx(summary.done.num_samples, rel=0.01)
    assert planned.num_objects == len(built(output))
    assert planned.bytes_written == pytest.approx(sum(built(output).values()), rel=0.1)
