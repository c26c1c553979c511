"""What is told of corpora: figures, the screen, the page, what deserves a second look, the dataset card."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from reinforce.cli import app
from reinforce.config import BuildConfig
from reinforce.inspection.charts import run_words
from reinforce.inspection.corpus_figures import CorpusFigures
from reinforce.inspection.dataset_card import write_dataset_card
from reinforce.inspection.doubts import find_doubts
from reinforce.inspection.figures import DropFigures, Figures
from reinforce.inspection.remarks import remarks
from reinforce.inspection.report import write_report
from reinforce.inspection.stats import inspect_dataset
from reinforce.inspection.table import render_table
from reinforce.shards.schema import CARD_FILE
from reinforce.storage import open_store
from reinforce.teachers import FakeTeacher
from tests.forgery import forge_document, forge_file, with_column
from tests.golden import make
from tests.test_corpora_build import build, plan_of, write_lines

SCRIPT = "<script>alert(1)</script> & more"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(make.SENTENCES_DATASET, tmp_path / "dataset"))


@pytest.fixture(scope="module")
def golden() -> Figures:
    return inspect_dataset(str(make.SENTENCES_DATASET))


def screen(figures: Figures) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(render_table(figures))
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def corpus(figures: Figures, name: str) -> CorpusFigures:
    return next(found for found in figures.corpora if found.name == name)


def test_the_figures_of_the_golden_corpora(golden: Figures) -> None:
    news, titles = golden.corpora
    assert golden.problems == ()
    assert golden.total_bytes == sum(file.stat().st_size for file in (make.SENTENCES_DATASET).rglob("*.parquet"))
    assert golden.all_source_bytes == sum(file.stat().st_size for file in make.SENTENCES_SOURCE.rglob("*.*"))
    assert (news.num_files, news.num_sentences, news.num_kept, news.num_cut) == (2, 17, 6, 0)
    assert {drop.reason: drop.count for drop in news.drops} == {
        "not_a_sentence": 4, "empty_sentence": 3, "not_utf8": 2, "duplicate_sentence": 1, "too_long_sentence": 1,
    }  # fmt: skip
    assert (titles.num_sentences, titles.num_kept, titles.num_cut) == (6, 3, 1)
    assert [(t.name, t.num_files, t.missing.count, t.mantissa_bits) for t in titles.teachers] == [
        ("exact", 1, 0, 10), ("small", 1, 0, 7),
    ]  # fmt: skip
    assert 0 < (titles.teachers[1].max_norm_error or 0) < 2**-8
    assert [(found.stem, found.key, found.text) for found in titles.examples] == [
        ("corpora/titles/rows", "1", "short"),
        ("corpora/titles/rows", "3", "twelve chars"),
        ("corpora/titles/rows", "6", "木" * 13),
    ]


def test_what_a_thousand_take_is_told_of_images_and_sentences_apart(copy: Path) -> None:
    """A run of both cannot tell what its seconds went to, and is in the totals alone."""
    for number, (samples, sentences, spent_s) in enumerate([(500, 0, 10.0), (0, 4000, 6.0), (500, 40_000, 143.0)]):
        events: list[dict[str, Any]] = [
            {"event": "start"},
            {"event": "shard", "stem": "s", "num_samples": samples, "num_sentences": 0},
            {"event": "shard", "stem": "corpora/news/s", "num_samples": 0, "num_sentences": sentences},
            {"event": "end", "elapsed_s": 2 * spent_s, "stage_seconds": {"teachers": spent_s}},
        ]
        folder = copy / "runs" / f"2999010{number + 1}T000000Z-00"
        folder.mkdir(parents=True)
        lines = [json.dumps({"time": f"2999-01-0{number + 1}T00:00:00Z"} | event) for event in events]
        (folder / "0.jsonl").write_text("\n".join(lines))
    figures = inspect_dataset(str(copy))
    cost = figures.cost
    assert cost is not None
    assert (cost.num_samples, cost.num_timed_samples, cost.stages_per_1000) == (1000, 500, {"teachers": 20.0})
    assert (cost.num_sentences, cost.num_timed_sentences) == (44_000, 4000)
    assert cost.stages_per_1000_sentences == {"teachers": 1.5}
    text = screen(figures)
    assert "20 s: 500 samples, 2 shards, 1 worker" in text
    assert "12 s: 4,000 sentences, 2 shards, 1 worker" in text
    assert "500 samples, 40,000 sentences, 2 shards, 1 worker" in text
    assert "teachers 2 min 39 s (20); in brackets seconds for 1,000 samples, of runs without sentences" in text
    assert "for 1,000 sentences, of runs without images: teachers 1.5 s" in text
    words = [run_words(run) for run in figures.runs]
    assert "4,000 sentences in 12.0 s by 1 worker, 333 a second" in words[1]
    assert "a second" not in words[2]


def test_the_screen_tells_of_each_corpus(golden: Figures) -> None:
    text = screen(golden)
    assert "corpus news: 2 files, 17 sentences, 6 kept; 8.8 kB beside 340 B of source; field text, longer" in text
    assert "dropped 4 not_a_sentence (more/objects/2, more/objects/3, more/objects/4), 3 empty_sentence" in text
    assert "titles: 1 file, 6 sentences, 3 kept; 4.4 kB beside 868 B of source; field title, longer than 13" in text
    assert "1 cut by the recipe" in text
    assert "by small: 2 files, 2.6 kB" in text


def test_what_is_unfinished_or_wrong_is_named(copy: Path) -> None:
    (copy / "corpora/news/embeddings/small/more/objects.parquet").unlink()
    (copy / "corpora/titles/embeddings/exact/signal.json").unlink()
    (copy / "corpora/news/embeddings/exact/stray.parquet").write_bytes(b"x")
    path = "corpora/news/embeddings/small/lines.parquet"
    forge_file(copy / path, change_footer=lambda footer: footer.update(source_sha256="0" * 64))
    figures = inspect_dataset(str(copy))
    assert {problem.path for problem in figures.problems} == {
        path, "corpora/titles/embeddings/exact", "corpora/news/embeddings/exact/stray.parquet",
    }  # fmt: skip
    lacking = {teacher.name: teacher.missing.stems for teacher in corpus(figures, "news").teachers}
    assert lacking == {"exact": (), "small": ("corpora/news/more/objects",)}
    assert "lacks 1 file (more/objects)" in screen(figures)
    assert any("Corpus news lacks embeddings of 1 file" in remark for remark in remarks(figures))


def test_damaged_documents_and_rows_are_problems_of_their_own(copy: Path) -> None:
    forge_document(copy / "corpora/news/corpus.json", lambda document: document["content"].update(column="x"))
    (copy / "corpora/news/embeddings/small/signal.json").write_text("{")
    (copy / "corpora/titles/corpus.json").unlink()
    forge_file(
        copy / "corpora/news/embeddings/exact/lines.parquet",
        lambda table: with_column(table, "key", ["1", "2", "9", "8"]),
    )
    figures = inspect_dataset(str(copy))
    assert {problem.path: problem.what.partition(":")[0].partition(",")[0] for problem in figures.problems} == {
        "corpora/titles/corpus.json": "is missing",
        "corpora/news/corpus.json": "its fingerprint is not that of its content",
        "corpora/news/embeddings/small/signal.json": "not JSON",
        "corpora/news/embeddings/exact/lines.parquet": "row 2 is '9'",
    }
    assert [found.name for found in figures.corpora] == ["news"]


def test_footers_are_sampled_and_scaled_up_unless_all_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        write_lines(tmp_path / f"in/{number}.txt", ["one", "two", ""])
    assert not build(plan_of(str(tmp_path / "in"), [FakeTeacher("small", dim=4)]), tmp_path / "out").failed
    monkeypatch.setattr("reinforce.inspection.corpora.MOST_FOOTER_SHARDS", 2)
    (sampled,) = inspect_dataset(str(tmp_path / "out")).corpora
    assert (sampled.num_footer_files, sampled.num_sentences, sampled.drops[0].count) == (2, 18, 6)
    assert "6 files, ~18 sentences, ~12 kept" in screen(inspect_dataset(str(tmp_path / "out")))
    (full,) = inspect_dataset(str(tmp_path / "out"), is_full=True).corpora
    assert (full.num_footer_files, full.num_sentences, full.is_estimated) == (6, 18, False)


def test_what_deserves_a_second_look(golden: Figures) -> None:
    news, titles = golden.corpora
    assert list(find_doubts(golden, {})) == []
    cut = replace(news.teachers[0], num_truncated_texts=1, max_norm_error=0.01)
    figures = replace(golden, corpora=(replace(news, teachers=(cut,)), titles))
    assert list(find_doubts(figures, {})) == [
        "corpora/news by exact: a norm is off by 1.0e-02, more than 10 mantissa bits explain",
        "corpora/news by exact: 16.7 % of the sentences are longer than the context and cut",
    ]
    assert remarks(golden) == [
        "Corpus news: 11 of 17 sentences dropped: 4 not_a_sentence, 3 empty_sentence, 2 not_utf8, "
        "1 duplicate_sentence, 1 too_long_sentence",
        "Corpus titles: 3 of 6 sentences dropped: 1 duplicate_sentence, 1 empty_sentence, 1 not_a_sentence",
        "Corpus titles: 1 sentence cut, too long for the recipe",
    ]
    unselected = replace(news, drops=(DropFigures("not_selected", 11, ()),))
    assert remarks(replace(golden, corpora=(unselected,))) == []


def test_the_page_shows_sentences_escaped_and_cut(tmp_path: Path) -> None:
    write_lines(tmp_path / "in/<b>.txt", [SCRIPT, "pad " * 150, "", "three words here"])
    assert not build(plan_of(str(tmp_path / "in")), tmp_path / "out").failed
    figures = inspect_dataset(str(tmp_path / "out"))
    assert write_report(str(tmp_path / "out"), tmp_path / "page.html", figures) == []
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    section = page.split('<h2 id="sentences">')[1].split("</section>")[0]
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in section
    assert "corpora/web/&lt;b&gt;/1" in section
    assert section.count("pad ") == 74
    assert "empty_<wbr>sentence" in section
    assert "1 = 25 %" in section
    assert "words a sentence, of 3" in section


def test_the_json_has_the_figures() -> None:
    done = CliRunner().invoke(app, ["inspect", str(make.SENTENCES_DATASET), "--json"])
    found = json.loads(done.output)["corpora"]
    assert [(of["name"], of["num_kept"], len(of["teachers"])) for of in found] == [("news", 6, 2), ("titles", 3, 2)]


def test_what_documents_and_folders_say_is_no_markup(copy: Path) -> None:
    """Nor anything to a terminal: not the field of a corpus, not the name of a teacher or of a file."""
    name, harmless = "<b>`[bold]", "<b>'[bold]"
    document = json.loads((copy / "corpora/news/corpus.json").read_text())
    document["content"] |= {"column": f"\x1b[31m{name}", "max_characters": name}
    (copy / "corpora/news/corpus.json").write_text(json.dumps(document))
    (copy / "corpora/news/embeddings/small").rename(copy / f"corpora/news/embeddings/{name}")
    (copy / "corpora/news/sentences/lines.parquet").rename(copy / f"corpora/news/sentences/{name}.parquet")
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    console.print(render_table(inspect_dataset(str(copy))))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "\x1b[31m" not in shown
    assert f"field \N{REPLACEMENT CHARACTER}[31m{name}, longer than ?" in " ".join(shown.split())
    assert f"by {name}: 2 files, 2.6 kB; lacks 1 file ({name})" in shown
    assert write_dataset_card(open_store(str(copy)), BuildConfig())
    body = (copy / CARD_FILE).read_text().split("---\n", 2)[2]
    assert f"field `\N{REPLACEMENT CHARACTER}[31m{harmless}`, longer than ? characters dropped" in body
    assert f"  - by `{harmless}`: 2 files, 2.6 kB; lacks 1 file (`{harmless}`)" in body
    assert "\x1b" not in body


def test_the_card_tells_of_corpora_and_of_no_place(copy: Path) -> None:
    corpora: dict[str, Any] = {
        "news": {"files": ["/home/someone/news/a.txt", "@/home/someone/list.txt"], "root": "/home/someone"},
        "titles": {"files": "s3://bucket/team/titles?profile=someone", "column": "title"},
    }
    config = BuildConfig.model_validate({"teachers": {"small": {"model": "org/name"}}, "corpora": corpora})
    assert write_dataset_card(open_store(str(copy)), config)
    text = (copy / CARD_FILE).read_text()
    header, body = (text.split("---\n", 2)[index] for index in (1, 2))
    configs = yaml.safe_load(header)["configs"]
    assert {entry["config_name"] for entry in configs} >= {"corpora-news-sentences", "corpora-titles-embeddings-small"}
    assert all(list(copy.glob(entry["data_files"])) for entry in configs if "corpora" in entry["config_name"])
    assert "- sentences without images: `news`: 2 files, 17 sentences, 6 kept" in body
    assert "| sentences of `news` | FILL IN |" in body
    recipe = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert recipe["build"]["corpora"] == {
        "news": {"files": ["a.txt", "@list.txt"]},
        "titles": {"files": ["titles"], "column": "title"},
    }
    assert "someone" not in text
