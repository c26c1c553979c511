"""Sentences without images: every record accounted for, every kept one embedded as it is embedded alone."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import reinforce
from reinforce.plan import BuildPlan
from reinforce.runners import BuildSummary, describe, run_plan
from reinforce.runners.asked import find_sentences
from reinforce.shards.corpora import corpora_of, open_corpus
from reinforce.shards.reader import to_numpy
from reinforce.shards.schema import round_mantissa
from reinforce.storage import open_store
from reinforce.teachers import Teacher
from tests.fakes import fake_plan, fake_teachers


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
