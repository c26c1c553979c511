"""Sentences without images: every record accounted for, every kept one embedded as it is embedded alone."""

import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

import reinforce
from reinforce.cli import app
from reinforce.config import ConfigError, Recipe
from reinforce.plan import BuildPlan
from reinforce.runners import BuildSummary, describe, describe_forecast, plan_build, run_plan
from reinforce.runners.asked import ask, find_sentences
from reinforce.sample import Embeddings
from reinforce.shard_report import stored_sentences_report
from reinforce.shards.corpora import corpora_of, open_corpus
from reinforce.shards.dataset import DatasetMismatchError
from reinforce.shards.reader import to_numpy
from reinforce.shards.schema import round_mantissa
from reinforce.storage import StorageError, open_store
from reinforce.teachers import FakeTeacher, Teacher, TokenizedText
from tests import models
from tests.fakes import fake_plan, fake_teachers, files_of
from tests.s3_server import S3Server, use_test_credentials
from tests.tars import pairs, write_tar


def plan_of(files: Any, teachers: list[Teacher] | None = None, **fields: Any) -> BuildPlan:
    """A plan of one corpus, `web`."""
    return fake_plan({"corpora": {"web": {"files": files, **fields}}}, teachers=teachers, captioners=[])


def build(plan: BuildPlan, output: Path | str, **options: Any) -> BuildSummary:
    """Builds the corpora of a plan, and no images."""
    store = open_store(str(output), create=True)
    found = find_sentences(plan.config, store)
    given = dict[str, Any](source_root="file:///nowhere", console=Console(file=io.StringIO())) | options
    return run_plan(plan, found.refs, store, corpus_roots=found.roots, **given)


def write_lines(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_every_sentence_of_every_batch(tmp_path: Path) -> None:
    """Files longer than a batch of sentences, and than a row group."""
    lines = [f"sentence {index} " + "x" * (index % 40) for index in range(1500)]
    write_lines(tmp_path / "in" / "deep" / "a.txt", lines)
    write_lines(tmp_path / "in" / "b.txt", ["only one"])
    summary = build(plan_of(str(tmp_path / "in")), tmp_path / "out")
    assert (summary.done.num_sentences, summary.done.num_kept_sentences, summary.failed) == (1501, 1501, {})
    assert "2 of 2 shards complete" in describe(summary)
    assert "1,501 sentences, 1,501 kept" in describe(summary)
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    assert corpora_of(dataset) == ["web"]
    corpus = open_corpus(dataset, "web")
    assert corpus.stems == ["corpora/web/b", "corpora/web/deep/a"]
    assert list(corpus.teachers) == ["large", "small"]
    for teacher in fake_teachers():
        with corpus.open_embeddings("corpora/web/deep/a", teacher.name) as file:
            table, footer = file.read(), file.footer
        assert table.column("key").to_pylist() == [str(number) for number in range(1, 1501)]
        expected = round_mantissa(teacher.embed_texts([line.strip() for line in lines])[0], teacher.mantissa_bits)
        np.testing.assert_array_equal(to_numpy(table.column("embedding")), expected)
        assert footer["num_rows"] == 1500


MIXED = ["a cat", "", "a dog", "a cat", "y" * 2000, "the end"]
"""Records of which three are kept: 1, 3 and 6."""


def test_dropped_records_are_rows_and_cost_no_neighbour(tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "a.txt", MIXED)
    summary = build(plan_of(str(tmp_path / "in" / "a.txt")), tmp_path / "out")
    text = describe(summary)
    assert "6 sentences, 3 kept" in text
    assert "dropped: duplicate_sentence 1, empty_sentence 1, too_long_sentence 1" in text
    dataset = reinforce.open_dataset(str(tmp_path / "out"))
    corpus = open_corpus(dataset, "web")
    with corpus.open_sentences("corpora/web/a") as file:
        rows, footer = file.read().to_pylist(), file.footer
    assert [row["key"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [row["text"] for row in rows] == ["a cat", None, "a dog", None, None, "the end"]
    assert rows[4]["drop_detail"] == "2000 characters"
    source = (tmp_path / "in" / "a.txt").read_bytes()
    assert (footer["num_kept"], footer["source_bytes"], footer["corpus"]) == (3, len(source), "web")
    assert footer["source_sha256"] == hashlib.sha256(source).hexdigest()
    assert footer["fingerprint"] == corpus.document["fingerprint"]
    with corpus.open_embeddings("corpora/web/a", "small") as file:
        assert file.read().column("key").to_pylist() == ["1", "3", "6"]
    (log,) = (tmp_path / "out" / "runs").rglob("*.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    (shard,) = [event for event in events if event["event"] == "shard"]
    assert "parse" in events[-2]["stage_seconds"]
    assert (shard["stem"], shard["num_sentences"], shard["drops"]["empty_sentence"]) == ("corpora/web/a", 6, 1)
    stored = stored_sentences_report(dataset.store, "corpora/web/a", ["large", "small"])
    assert (stored.num_kept_sentences, stored.drops) == (3, summary.done.drops)


def test_a_resume_adds_what_is_missing_and_rewrites_nothing(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        write_lines(source / f"{name}.txt", [f"{name} {index}" for index in range(9)])
    build(plan_of(str(source)), output)
    whole = files_of(output)
    (output / "corpora/web/embeddings/large/b.parquet").unlink()
    (output / "corpora/web/embeddings/small/c.parquet").unlink()
    (output / "corpora/web/sentences/c.parquet").unlink()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}
    summary = build(plan_of(str(source)), output)
    assert (summary.num_complete_before, summary.done.num_files) == (1, 3)
    assert files_of(output) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert build(plan_of(str(source)), output).done.num_files == 0


def test_embeddings_of_another_source_are_not_kept(tmp_path: Path) -> None:
    """Sentences that are gone are written again, but only as those that the embeddings are of."""
    source, output = tmp_path / "a.txt", tmp_path / "out"
    build(plan_of(str(write_lines(source, ["one", "two"]))), output)
    spine = output / "corpora/web/sentences/a.parquet"
    spine.unlink()
    write_lines(source, ["two", "one"])
    failed = build(plan_of(str(source)), output).failed
    assert list(failed) == ["corpora/web/a"]
    assert "has changed since its embeddings were written" in failed["corpora/web/a"]
    assert not spine.exists()
    write_lines(source, ["one", "two"])
    assert build(plan_of(str(source)), output).failed == {}
    assert spine.exists()


def test_a_second_teacher_needs_no_source(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_lines(source / "a.txt", [*MIXED, *(f"line {index}" for index in range(600))])
    first, second = fake_teachers()
    build(plan_of(str(source), [first, second]), tmp_path / "together")
    build(plan_of(str(source), [first]), output)
    shutil.rmtree(source)
    summary = build(plan_of(str(source), [first, second]), output)
    assert (summary.done.num_files, summary.done.num_sentences) == (1, 603), "kept ones only"
    assert files_of(output) == files_of(tmp_path / "together")
    notes = find_sentences(plan_of(str(source)).config, open_store(str(output))).notes
    assert notes == (
        f"build.corpora.web: no such file or folder: file://{source}; going on with the 1 of its files "
        "that the dataset holds",
    )


def test_the_same_passes_from_the_source_and_from_the_dataset(tmp_path: Path) -> None:
    """What shares a pass must not depend on the records between: drops, which the dataset's sentences come without."""

    class Recording(FakeTeacher):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.passes: list[list[bytes]] = []

        def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
            self.passes.append([bytes(text.ids.tolist()) for text in texts])
            return super().embed_tokens(texts)

    first, second = Recording("first"), Recording("second")
    lines = [text for index in range(600) for text in (f"{index} " + "x" * (index % 30), "")]
    write_lines(tmp_path / "in" / "a.txt", lines)
    build(plan_of(str(tmp_path / "in"), [first]), tmp_path / "out")
    build(plan_of(str(tmp_path / "in"), [first, second]), tmp_path / "out")
    assert sum(len(texts) for texts in first.passes) == 600
    assert first.passes == second.passes


def test_that_some_files_are_gone_is_a_mistake(tmp_path: Path) -> None:
    """What the dataset holds stands for a corpus of which nothing is there, never for one that is there in part."""
    write_lines(tmp_path / "a.txt", ["a"])
    write_lines(tmp_path / "b.txt", ["b"])
    both = plan_of([str(tmp_path / "a.txt"), f"{tmp_path}/b.{{txt,jsonl}}", f"{tmp_path}/c*.txt"], root=str(tmp_path))
    store = open_store(str(tmp_path / "out"), create=True)
    build(plan_of(str(tmp_path / "a.txt"), root=str(tmp_path)), tmp_path / "out")
    with pytest.raises(StorageError, match=r"1 of 2 members of file://.*/b\.\{txt,jsonl\} have no file of sentences"):
        find_sentences(both.config, store)
    write_lines(tmp_path / "b.jsonl", ["{}"])
    (tmp_path / "b.txt").rename(tmp_path / "b.moved")
    gone = plan_of([f"{tmp_path}/{{b,d}}.txt", str(tmp_path / "a.txt")], root=str(tmp_path))
    with pytest.raises(StorageError, match=r"web: 2 of 2 members of file://.*/\{b,d\}\.txt have no") as raised:
        find_sentences(gone.config, store)
    assert "\n" not in str(raised.value)
    (tmp_path / "a.txt").unlink()
    found = find_sentences(gone.config, store)
    assert [ref.stem for ref in found.refs] == ["corpora/web/a"]
    assert len(found.notes) == 1


def test_a_sentence_without_finite_embedding_is_null(tmp_path: Path) -> None:
    class Broken(FakeTeacher):
        def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
            embedded = super().embed_tokens(texts)
            embedded[[bytes(text.ids[:3].tolist()) == b"bad" for text in texts]] = np.nan
            return embedded

    write_lines(tmp_path / "a.txt", ["good", "bad one", "fine"])
    summary = build(plan_of(str(tmp_path / "a.txt"), [Broken("large")]), tmp_path / "out")
    assert summary.done.nulls == {"non_finite": 1}
    corpus = open_corpus(reinforce.open_dataset(str(tmp_path / "out")), "web")
    with corpus.open_embeddings("corpora/web/a", "large") as file:
        assert [value is None for value in file.read().column("embedding").to_pylist()] == [False, True, False]
        assert file.footer["nulls"] == {"non_finite": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_characters": 9}, r"content\.max_characters is 1000 there and 9 in this recipe"),
        ({"too_long": "truncate"}, r"content\.too_long is \"drop\" there and \"truncate\""),
        ({"column": "caption"}, r"content\.column is \"text\" there and \"caption\""),
    ],
)
def test_a_corpus_of_another_meaning_is_refused(built: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetMismatchError, match=message):
        build(plan_of(str(built / "in"), **fields), built / "out")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in `out`, of a file in `in`. Leave it as it was."""
    folder = tmp_path_factory.mktemp("corpora")
    write_lines(folder / "in" / "a.txt", MIXED)
    build(plan_of(str(folder / "in")), folder / "out")
    return folder


def command(folder: Path, *arguments: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(app, ["build", "--recipe", "recipe.yaml", "--output", "out", *arguments])


def test_the_command_from_shards_to_a_failed_file(tmp_path: Path) -> None:
    models.save_open_clip(tmp_path / "teacher")
    write_tar(tmp_path / "images" / "s.tar", pairs(2))
    for name in "ab":
        write_lines(tmp_path / "texts" / f"{name}.txt", [f"{name} {index}" for index in range(5)])
    (tmp_path / "texts" / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c"}\n' * 9)[:-12])
    build_section = {
        "batch_size": 4,
        "views": {"count": 0},
        "teachers": {"t": {"model": "local-dir:teacher"}},
        "corpora": {"web": {"files": "texts"}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"build": build_section}))
    refused = command(tmp_path)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "--shards: none given, and there is no dataset yet to add corpora to" in refused.stderr
    planned = command(tmp_path, "--shards", "images", "--plan")
    assert planned.exit_code == 0, planned.output
    assert "corpus web: 3 of 3 files of sentences lack something" in planned.stdout
    # One file cannot be read: its 26 bytes are taken for those of others.
    assert "sentences take the teachers" in planned.stdout
    assert "estimated from 10 sentences on one worker, on CPU" in planned.stdout
    assert not (tmp_path / "out").exists()
    # The first shard and the first file of each corpus, then all: images need not be named again.
    first = command(tmp_path, "--shards", "images", "--limit-shards", "1")
    assert (first.exit_code, first.stdout.splitlines()[0]) == (0, "2 of 2 shards complete (0 were before this run)")
    assert "2 samples, 2 kept, 2 views, 0 captions; 5 sentences, 5 kept; 5 files" in first.stdout
    rest = command(tmp_path)
    assert (rest.exit_code, rest.stdout.splitlines()[0]) == (1, "2 of 3 shards complete (1 were before this run)")
    assert "failed: corpora/web/c: is cut or damaged" in rest.stdout
    assert (tmp_path / "out" / "failures" / "corpora" / "web" / "c.json").exists()
    (tmp_path / "texts" / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "c"}\n'))
    again = command(tmp_path, "--retry-failed")
    assert (again.exit_code, again.stdout.splitlines()[0]) == (0, "1 of 1 shards complete (0 were before this run)")
    assert not (tmp_path / "out" / "failures" / "corpora" / "web" / "c.json").exists()
    planned = command(tmp_path, "--plan")
    assert planned.stdout.splitlines()[0].startswith("corpus web: nothing is missing: 3 of 3 files")


def test_a_plan_refuses_and_tells_what_a_build_does(tmp_path: Path) -> None:
    """Also where no shard of images lacks anything, and where the source of sentences is gone."""
    source, output = write_lines(tmp_path / "in" / "a.txt", MIXED), str(tmp_path / "out")
    recipe = config_of(str(source.parent), ("large", "small"))
    build(BuildPlan(recipe.build, fake_teachers(), []), output)
    errors = Console(file=io.StringIO(), width=200)
    planned = describe_forecast(plan_build(None, output, recipe, console=errors))
    assert planned == "corpus web: nothing is missing: 1 of 1 files of sentences are complete"
    with pytest.raises(
        DatasetMismatchError, match=rf"^file://{output}/corpora/web/corpus\.json was .* 1000 there and 9"
    ):
        plan_build(None, output, config_of(str(source.parent), ("large", "small"), max_characters=9), console=errors)
    source.unlink()
    plan_build(None, output, recipe, console=errors)
    assert isinstance(errors.file, io.StringIO)
    assert "going on with the 1 of its files that the dataset holds" in errors.file.getvalue()


def config_of(files: Any, teachers: Sequence[str] = ("t",), **fields: Any) -> Recipe:
    models = {name: {"model": "fake"} for name in teachers}
    build_section = {"teachers": models, "captioners": {"c": {"kind": "transformers", "model": "fake"}}}
    return Recipe.model_validate({"build": build_section | {"corpora": {"web": {"files": files, **fields}}}})


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        (["a.txt", "b.csv"], {}, r"web: file://.*b\.csv is not a \.txt, \.jsonl or \.parquet"),
        (["a.txt", "a.jsonl"], {}, r"web: file://.*a\.txt and file://.*a\.jsonl have one stem: rename one of them"),
        (["a.txt", "."], {}, r"web: file://.*a\.txt is named twice: two files of sentences with one stem"),
        (["a.txt"], {"root": "deep"}, r"web: file://.*a\.txt is outside the source root file://.*deep: pass root"),
        (["@nowhere"], {}, r"web: cannot read the list of files of sentences file://.*nowhere: no such file"),
        (["*.parquet"], {}, r"web: no \*\.txt, \*\.jsonl or \*\.parquet matches"),
        (["a.txt"], {"teachers": ()}, r"build\.corpora\.web: nothing embeds it; name a teacher in build\.teachers"),
    ],
)
def test_files_that_cannot_be_meant(files: list[str], fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "images" / "s.tar", pairs(1))
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "a.jsonl", "b.csv"):
        write_lines(tmp_path / name, ["x"])
    if files[-1] == ".":
        (tmp_path / "a.jsonl").unlink()
    root = {"root": str(tmp_path / fields.pop("root"))} if "root" in fields else {}
    given = [f"@{tmp_path / name[1:]}" if name.startswith("@") else str(tmp_path / name) for name in files]
    recipe = config_of(given, **fields, **root)
    with pytest.raises((StorageError, ConfigError), match=message) as raised:
        ask([str(tmp_path / "images")], str(tmp_path / "out"), recipe, None, (), None, None)
    assert "\n" not in str(raised.value)


def test_every_way_to_name_files(tmp_path: Path) -> None:
    names = ["a.txt", "b.jsonl.gz", "deep/c.parquet", "deep/d.txt.zst"]
    for name in names:
        write_lines(tmp_path / name, ["x"])
    write_lines(tmp_path / ".hidden.txt", ["x"])
    write_lines(tmp_path / "other.csv", ["x"])
    write_tar(tmp_path / "s.tar", pairs(1))
    write_lines(tmp_path / "list", [str(tmp_path / name) for name in names])
    every = ["corpora/web/a", "corpora/web/b", "corpora/web/deep/c", "corpora/web/deep/d"]
    for files in (str(tmp_path), f"{tmp_path}/**/*", f"@{tmp_path}/list", [str(tmp_path / name) for name in names]):
        found = find_sentences(config_of(files).build, open_store(str(tmp_path)))
        assert [ref.stem for ref in found.refs] == every, files
    found = find_sentences(config_of(f"{tmp_path}/{{a,b}}.*").build, open_store(str(tmp_path)))
    assert [ref.path for ref in found.refs] == names[:2]


def test_images_may_not_be_called_as_sentences_are(tmp_path: Path) -> None:
    """Not in a build without corpora either; a dataset that has such shards goes on with them, and has no corpora."""
    images, output = tmp_path / "images", str(tmp_path / "out")
    write_tar(images / "corpora" / "x" / "s.tar", pairs(1))
    with_corpora = config_of(str(write_lines(tmp_path / "a.txt", ["x"])))
    without = Recipe.model_validate({"build": {"teachers": {"t": {"model": "fake"}}}})
    for recipe in (with_corpora, without):
        with pytest.raises(ConfigError, match=r"--shards: corpora/x/s: that is what sentences of a corpus are called"):
            ask(str(images), output, recipe, None, (), None, None)
    open_store(output, create=True).put("samples/corpora/x/s.parquet", b"of an earlier version")
    assert [ref.stem for ref in ask(str(images), output, without, None, (), None, None).refs] == ["corpora/x/s"]
    with pytest.raises(ConfigError, match=r"build\.corpora\.web: the dataset has samples/corpora/x/s\.parquet, images"):
        ask(str(images), output, with_corpora, None, (), None, None)
    write_tar(images / "corpora" / "x" / "t.tar", pairs(1))
    with pytest.raises(ConfigError, match=r"--shards: corpora/x/t: that is what"):
        ask(str(images), output, without, None, (), None, None)


def test_s3_to_s3_is_the_local_build(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_credentials(monkeypatch, server.endpoint)
    bucket = server.make_bucket("corpora-bucket")
    for name in ("a.txt.gz", "deep/b.jsonl.zst", "deep/c.parquet"):
        text = "".join(f"{name} {index}\n" for index in range(400))
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(text.encode(), mtime=0))
        elif name.endswith(".zst"):
            with pa.CompressedOutputStream(str(path), "zstd") as stream:
                stream.write("".join(f"{json.dumps({'text': line})}\n" for line in text.splitlines()).encode())
        else:
            pq.write_table(pa.table({"text": text.splitlines()}), path)
        server.client().upload_file(str(path), bucket, f"texts/{name}")
    target = f"s3://{bucket}/dataset"
    assert build(plan_of(f"s3://{bucket}/texts"), target).failed == {}
    build(plan_of(str(tmp_path / "in")), tmp_path / "local")
    store = open_store(target)
    remote = {info.path: store.read(info.path) for info in store.list() if info.path.endswith(".parquet")}
    local = {name: data for name, data in files_of(tmp_path / "local").items() if name.endswith(".parquet")}
    assert remote == local
    assert len(local) == 9
    assert build(plan_of(f"s3://{bucket}/texts"), target).done.num_files == 0
