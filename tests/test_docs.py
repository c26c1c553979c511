"""The pages and the README: their examples run, and they name every field, option, reason and footer field there is."""

import dataclasses
import doctest
import json
import re
import shutil
import textwrap
import types
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import reinforce.runners
import reinforce.shards.dataset
import reinforce.student.identity
from reinforce import config
from reinforce.cli import app
from reinforce.config import builtin_recipes, load_recipe, parse_recipe
from reinforce.deploy.label.command import parser
from reinforce.sample import DropReason, NullReason
from reinforce.selection.criteria import Reason
from reinforce.shards.schema import FOOTER_KEY
from reinforce.student.batch import ORIGINAL, SYNTHETIC, Batch
from tests.conftest import REPOSITORY
from tests.models import save_open_clip
from tests.tars import pairs, write_tar

DOCS = REPOSITORY / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), REPOSITORY / "README.md"])
NOT_RUN = "<!-- not run -->"
GOLDEN = REPOSITORY / "tests" / "golden" / "dataset"
MODALITIES = GOLDEN.parent / "modalities" / "dataset"
SENTENCES = GOLDEN.parent / "sentences" / "dataset"
SECTIONS: dict[str, type[BaseModel]] = {
    "`build`": config.BuildConfig,
    "`build.source`": config.SourceConfig,
    "`build.modalities.NAME`": config.ModalityConfig,
    "`build.views`": config.ViewsConfig,
    "`build.teachers.NAME`": config.TeacherConfig,
    "`build.captioners.NAME`": config.CaptionerConfig,
    "`build.banks.NAME`": config.BankConfig,
    "`build.corpora.NAME`": config.CorpusConfig,
    "`build.ray`": config.RayConfig,
    "`student`": config.StudentConfig,
    "`student.model`": config.StudentModelConfig,
    "`student.model.text`": config.TextTowerConfig,
    "`student.data`": config.DataConfig,
    "`student.data.sentences`": config.SentencesConfig,
    "`student.loss`": config.LossConfig,
    "`student.optimizer`": config.OptimizerConfig,
    "`student.evaluation`": config.EvaluationConfig,
}
HEADER_LINES = ("Claim", "Data", "Teachers", "Command")


def page_name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def code_blocks(text: str, language: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of a language that are not marked as not run, with the line each begins at."""
    for match in re.finditer(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        if not text[: match.start()].rstrip().endswith(NOT_RUN):
            yield text[: match.start(2)].count("\n"), textwrap.dedent(match[2])


def run_block(block: str, globals_: dict[str, Any], name: str, line: int) -> None:
    """Runs a block: one with prompts as a doctest, its output compared, any other as a script."""
    if not block.lstrip().startswith(">>>"):
        exec(compile("\n" * line + block, name, "exec"), globals_)
        return
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(block, globals_, name, name, line)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=options, verbose=False).run(test, out=report.append, clear_globs=False)
    globals_.update(test.globs)
    assert not report, "".join(report)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the examples find in the working directory: a shard, a model, the quickstart's recipe, the golden files."""
    texts = [(f"{i:05d}.json", json.dumps({"alt": f"alternative text {i}"}).encode()) for i in range(20)]
    write_tar(tmp_path / "scenes" / "00000.tar", pairs(20) + texts)
    save_open_clip(tmp_path / "models" / "mine")
    recipe = next(block for _, block in code_blocks((DOCS / "quickstart.md").read_text(), "yaml"))
    (tmp_path / "own.yaml").write_text(recipe)
    shutil.copytree(REPOSITORY / "tests" / "golden", tmp_path / "tests" / "golden")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_python(pages: list[Path]) -> list[Path]:
    return [page for page in pages if any(code_blocks(page.read_text(), "python"))]


@pytest.mark.parametrize("page", with_python(PAGES), ids=page_name)
def test_the_examples_of_a_page_run(page: Path, workspace: Path) -> None:
    module: dict[str, Any] = {"__name__": "page"}
    for line, block in code_blocks(page.read_text(), "python"):
        run_block(block, module, page_name(page), line)


def test_there_are_examples_and_a_wrong_one_fails(workspace: Path) -> None:
    assert {page.name for page in with_python(PAGES)} >= {"quickstart.md", "format.md", "views.md", "students.md"}
    text = f"```python\n>>> 1 + 1\n2\n```\n\n{NOT_RUN}\n```python\nraise ValueError\n```\n"
    assert [block for _, block in code_blocks(text, "python")] == [">>> 1 + 1\n2\n"]
    with pytest.raises(AssertionError, match="Expected"):
        run_block(">>> 1 + 1\n3\n", {}, "page", 0)
    with pytest.raises(ZeroDivisionError):
        run_block("1 / 0", {}, "page", 0)


def run_doctest(function: types.FunctionType) -> doctest.TestResults:
    tests = doctest.DocTestFinder(recurse=False).find(function, globs=dict(function.__globals__))
    return doctest.DocTestRunner().run(tests[0])


def test_the_example_of_open_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert isinstance(reinforce.shards.dataset.open_dataset, types.FunctionType)
    result = run_doctest(reinforce.shards.dataset.open_dataset)
    assert (result.failed, result.attempted > 4) == (0, True)


def test_the_example_of_build(workspace: Path) -> None:
    recipe = builtin_recipes().get("demo")
    if recipe is None or not (REPOSITORY / "reinforce" / "demo" / "models").is_dir():
        pytest.skip("the demo's recipe or models are not there yet")
    assert isinstance(reinforce.runners.build, types.FunctionType)
    result = run_doctest(reinforce.runners.build)
    assert (result.failed, result.attempted > 2) == (0, True)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_recipes_on_a_page_are_valid(page: Path) -> None:
    for _, block in code_blocks(page.read_text(), "yaml"):
        recipe = parse_recipe(yaml.safe_load(block))
        assert recipe.build.teachers or recipe.student


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_shipped_recipes_parse_and_say_what_they_are(name: str) -> None:
    load_recipe(name)
    header = header_of(builtin_recipes()[name].read_text())
    assert [word for word in HEADER_LINES if not re.search(rf"^# {word}\s+\S", header, re.MULTILINE)] == []
    assert f"| `{name}` |" in (DOCS / "recipes.md").read_text()


def header_of(recipe: str) -> str:
    return re.split(r"^(?:build|student):", recipe, maxsplit=1, flags=re.MULTILINE)[0]


def test_every_field_of_a_recipe_is_described_with_its_default() -> None:
    text = (DOCS / "recipes.md").read_text()
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", text, re.MULTILINE))
    wrong = [
        f"{heading}: {field}"
        for heading, model in SECTIONS.items()
        for field in fields_not_described(sections[heading], model.model_fields)
    ]
    assert wrong == []
    described = {model for heading, model in SECTIONS.items() if heading in sections}
    models = {value for value in vars(config).values() if isinstance(value, type) and issubclass(value, BaseModel)}
    assert {model.__name__ for model in models - described} == {"ViewPolicy", "Recipe"}


def fields_not_described(section: str, fields: Mapping[str, FieldInfo]) -> list[str]:
    """The fields without a row that gives their default, and the rows of fields that are not there."""
    found = re.findall(r"^\| `(\w+)` \|([^|]*)\|", section, re.MULTILINE)
    rows = {name: cell.strip() for name, cell in found}
    missing = [name for name, field in fields.items() if rows.get(name) != default_cell(field)]
    return missing + sorted(rows.keys() - fields.keys())


def default_cell(field: FieldInfo) -> str:
    """The default as the table spells it; a section of its own has none."""
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return ""
    if value is None or value == "":
        return "none" if value is None else "empty"
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return f"`[{', '.join(value)}]`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def test_fields_that_may_change_on_resume_are_marked() -> None:
    text = (DOCS / "recipes.md").read_text()
    section = text.partition("\n## `student`\n")[2].partition("\n## ")[0]
    marked = set(re.findall(r"^\| `(\w+)` \|[^|]*\| R \|", section, re.MULTILINE))
    assert marked == reinforce.student.identity.FREE_FIELDS


def test_an_undescribed_field_is_noticed() -> None:
    table = "| `seed` | `0` | F | x |\n| `sed` | none | | x |\n"
    fields = config.BuildConfig.model_fields
    missing = fields_not_described(table, {"seed": fields["seed"], "threads": fields["threads"]})
    assert missing == ["threads", "sed"]


def test_the_students_page_names_all_that_is_counted_and_recorded() -> None:
    """Counters and rows as the code spells them: a new one that the page lacks is noticed."""
    named = set(re.findall(r"`(\w+)`", (DOCS / "students.md").read_text()))
    student = REPOSITORY / "reinforce" / "student"
    files = ("loading.py", "groups.py", "shard.py", "assemble.py", "mining.py", "sentences.py")
    reader = "".join((student / name).read_text() for name in files)
    counted = set(re.findall(r"(?:counts|skipped)\[\"(\w+)\"\]|reasons\.append\(\(\"(\w+)\"", reader))
    names = {one or other for one, other in counted} | {f"no_{role}_caption" for role in (ORIGINAL, SYNTHETIC)}
    assert len(names) == 15
    names |= {
        "left_out",
        "epoch",
        "learning_rate",
        "logit_scale",
        "gradient_norm",
        "samples_per_s",
        "wait_share",
        "reader_ms",
    }
    names |= {field.name for field in dataclasses.fields(Batch)}
    assert names - named == set()


@pytest.mark.parametrize("reasons", [DropReason, NullReason])
def test_the_format_enumerates_reasons(reasons: type[StrEnum]) -> None:
    text = (DOCS / "format.md").read_text()
    assert [reason for reason in reasons if f"\n| `{reason}` |" not in text] == []


def test_the_selecting_page_names_every_reason() -> None:
    text = (DOCS / "selecting.md").read_text()
    assert [reason for reason in Reason if f"| `{reason}` |" not in text] == []


def test_the_format_describes_footers_and_documents() -> None:
    """Every field that the golden files hold has a row, or (in `content` and `model`) a mention."""
    text = (DOCS / "format.md").read_text()
    rows = set(re.findall(r"`([\w.]+)`", " ".join(re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE))))
    used: set[str] = set()
    for path in (file for folder in (GOLDEN, MODALITIES, SENTENCES) for file in folder.rglob("*.parquet")):
        footer = json.loads(pq.ParquetFile(path).metadata.metadata[FOOTER_KEY])
        used |= footer.keys()
    dataset = json.loads((GOLDEN / "dataset.json").read_text())
    used |= dataset.keys() | (dataset["spine"].keys() - {"source"})
    used |= {f"source.{name}" for name in dataset["spine"]["source"]}
    for path in SENTENCES.rglob("corpus.json"):
        corpus = json.loads(path.read_text())
        used |= (corpus.keys() - {"content"}) | {f"content.{name}" for name in corpus["content"]}
    mentioned = set(re.findall(r"`(\w+)`", text))
    for path in (file for folder in (GOLDEN, MODALITIES, SENTENCES) for file in folder.rglob("signal.json")):
        signal = json.loads(path.read_text())
        used |= signal.keys()
        assert signal["content"].keys() | (signal["model"] or {}).keys() <= mentioned
    assert len(used) > 25
    assert used - rows == set()


def test_every_option_of_a_command_is_described() -> None:
    text = (DOCS / "operating.md").read_text().partition("## Exit status")[0]
    sections = dict(re.findall(r"^`reinforce ([\w-]+).*\n((?:(?!`reinforce ).*\n)*)", text, re.MULTILINE))
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        options = label_options() if name == "label" else options_of(command)
        assert options
        described = re.findall(r"^\| `(--[\w-]+)", sections[name], re.MULTILINE)
        assert sorted(described) == sorted(options)


def options_of(command: Any) -> list[str]:
    shown = [option for option in command.params if option.param_type_name == "option" and not option.hidden]
    return [spelling for option in shown for spelling in option.opts]


def label_options() -> list[str]:
    """Of the one command that has a parser of its own."""
    spellings = [spelling for action in parser()._actions for spelling in action.option_strings]
    return [spelling for spelling in spellings if spelling not in ("-h", "--help")]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_resolve(page: Path) -> None:
    assert broken_links(page.read_text(), page.parent) == []


def broken_links(text: str, folder: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose)]
    return [link for link in links if link and "://" not in link and not (folder / link).exists()]


def test_a_broken_link_is_noticed() -> None:
    text = "[a](index.md#x) [b](nowhere.md) [c](https://arxiv.org/abs/1)\n```\n[d](e.md)\n```\n"
    assert broken_links(text, DOCS) == ["nowhere.md"]


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere() -> None:
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    assert (site["strict"], site["theme"]["font"]) == (True, False)
    assert "site_url" not in site
    listed = re.findall(r"[\w/-]+\.md", json.dumps(site["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
