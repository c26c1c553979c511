"""Banks of labels: as evaluation embeds them, written once, added later, in batches; and what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import reinforce
from reinforce import open_dataset
from reinforce.banks import embed_bank, embed_recorded
from reinforce.cli import app
from reinforce.config import ConfigError, Recipe
from reinforce.evaluation import load_embedding_model, zeroshot
from reinforce.runners import BuildSummary, describe
from reinforce.sample import Embeddings
from reinforce.shards.banks import read_bank
from reinforce.shards.dataset import DatasetMismatchError
from reinforce.shards.reader import FormatError
from reinforce.teachers import FakeTeacher
from reinforce.weights import ModelError
from tests.fakes import fake_plan, files_of, run
from tests.models import save_open_clip
from tests.tars import pairs, write_tar

NAMES = ("cat", "red boat", "sky")
TEMPLATES = ("a photo of a {}.", "the {}")
LONG = "a {} and so many words behind it that no context of twelve tokens has room"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight images by a tiny open_clip teacher, with a bank of labels of which two are written twice."""
    folder = tmp_path_factory.mktemp("bank")
    save_open_clip(folder / "model")
    write_tar(folder / "in" / "a.tar", pairs(8))
    (folder / "names.txt").write_text("cat\nred boat\nsky\nCat\nred  Boat\n")
    (folder / "templates.txt").write_text("a photo of a {c}.\nthe {}\n")
    summary = build(folder, banks={"things": bank("names.txt", "templates.txt", folder)})
    assert summary.banks == ("bank things: 3 labels x 2 templates, written for tiny; 2 repeated labels left out",)
    assert summary.banks[0] in describe(summary)
    return folder


def bank(labels: Any, templates: Any = TEMPLATES, folder: Path | None = None) -> dict[str, Any]:
    """A bank of a recipe, its files in `folder`."""
    parts = {"labels": labels, "templates": templates}
    return {name: str(folder / part) if folder and isinstance(part, str) else part for name, part in parts.items()}


def build(folder: Path, **settings: Any) -> BuildSummary:
    """`reinforce build` of the fixture's dataset with other fields of the recipe."""
    teachers = {"tiny": {"model": f"local-dir:{folder / 'model'}"}}
    config = {"teachers": teachers, "views": {"count": 0}, "batch_size": 4, "workers": 1} | settings
    recipe = Recipe.model_validate({"build": config})
    return reinforce.build(str(folder / "in"), str(folder / "out"), recipe, console=Console(file=io.StringIO()))


def by_evaluation(folder: Path) -> np.ndarray:
    model = load_embedding_model(str(folder / "model"), torch.device("cpu"))
    with model.evaluating():
        return zeroshot.embed_classes(model, NAMES, TEMPLATES).numpy()


def test_a_bank_is_embedded_as_evaluation_does(folder: Path) -> None:
    found = read_bank(str(folder / "out" / "banks" / "things"))
    signal = open_dataset(str(folder / "out")).signals
    model = next(document for key, document in signal.items() if key.kind == "image")
    assert (found.name, found.teacher, found.labels, found.templates) == ("things", "tiny", NAMES, TEMPLATES)
    assert (found.logit_scale, found.logit_bias) == (model["model"]["logit_scale"], None)
    assert found.weights_sha256 == model["content"]["weights_sha256"]
    np.testing.assert_allclose(found.embeddings, by_evaluation(folder), atol=2**-12)
    assert json.loads((folder / "out/banks/things/bank.json").read_text())["num_duplicates"] == 2


def test_a_bank_added_later_is_all_that_is_computed(folder: Path) -> None:
    before = files_of(folder / "out")
    banks = {"things": bank("names.txt", "templates.txt", folder), "long": bank(("cat", "dog"), (LONG, "{}"))}
    summary = build(folder, banks=banks)
    line = "bank long: 2 labels x 2 templates, written for tiny; 2 prompts longer than tiny reads"
    assert (summary.banks, summary.done.num_files) == ((line,), 0)
    after = files_of(folder / "out")
    assert after.keys() - before.keys() == {"banks/long/bank.json", "banks/long/tiny.parquet"}
    assert [path for path in before if after[path] != before[path]] == ["README.md"]
    assert build(folder, banks=banks).banks == ()
    assert files_of(folder / "out") == after
    # Of a recipe without banks nothing is taken away, and another list under one name is no bank of that name.
    assert build(folder).num_complete_before == 1
    with pytest.raises(
        DatasetMismatchError, match=r"bank\.json was made .*content\.labels is .* there and .*, another name"
    ):
        build(folder, banks={"long": bank(("cat", "cow"), (LONG, "{}"))})
    with pytest.raises(FormatError, match=r"nothing of teacher other: it has tiny"):
        read_bank(str(folder / "out/banks/long"), "other")
    for path in sorted((folder / "out/banks/long").iterdir()):
        path.unlink()


def test_a_bank_added_under_another_scale_has_that_of_the_dataset(folder: Path) -> None:
    recorded = read_bank(str(folder / "out/banks/things")).logit_scale
    teachers = {"tiny": {"model": f"local-dir:{folder / 'model'}", "logit_scale": 3 * recorded}}
    banks = {"things": bank(list(NAMES)), "scaled": bank(list(NAMES))}
    build(folder, teachers=teachers, banks=banks)
    assert read_bank(str(folder / "out/banks/scaled")).logit_scale == recorded


def test_a_long_list_that_differs_is_shown_where_it_does(folder: Path, tmp_path: Path) -> None:
    labels = [f"label number {index}" for index in range(300)]
    write_tar(tmp_path / "in" / "a.tar", pairs(2))
    banks = {"many": {"labels": labels}}
    run(fake_plan({"banks": banks}, captioners=[]), tmp_path / "in", tmp_path / "out")
    for changed, message in (
        ([*labels[:200], "else", *labels[201:]], r'labels\[200\] is "label number 200" there and "else" in this'),
        (labels[:299], r"labels has 300 entries there and 299 in this recipe"),
    ):
        plan = fake_plan({"banks": {"many": {"labels": changed}}}, captioners=[])
        with pytest.raises(DatasetMismatchError, match=message):
            run(plan, tmp_path / "in", tmp_path / "out")


class Watched(FakeTeacher):
    """Counts the texts it is given at once; says nothing finite of a cow."""

    most_texts = 0

    def embed_texts(self, texts: list[str]) -> tuple[Embeddings, np.ndarray]:
        self.most_texts = max(self.most_texts, len(texts))
        embedded, is_cut = super().embed_texts(texts)
        embedded[["cow" in text for text in texts]] = np.nan
        return embedded, is_cut


def test_prompts_are_embedded_in_batches_that_change_nothing() -> None:
    teacher = Watched("watched")
    labels, templates = tuple(f"thing {index}" for index in range(700)), ("a {}", "the {} here", "{}")
    found, _ = embed_bank(teacher, "b", labels, templates, option="x")
    assert 512 <= teacher.most_texts <= 1024
    for row in (0, 341, 342, 699):  # a batch ends within 341
        mean = FakeTeacher("").embed_texts([template.replace("{}", labels[row]) for template in templates])[0].mean(0)
        np.testing.assert_allclose(found.embeddings[row], mean / np.linalg.norm(mean), atol=1e-6)
    with pytest.raises(ConfigError, match=r"^build\.banks\.b: teacher watched gives nothing finite for .* 'cow 7'$"):
        embed_bank(teacher, "b", ("dog", "cow 7"), templates, option="build.banks.b")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"teachers": {}, "banks": {"b": {"labels": ["cat"]}}}, r"build\.banks\.b: nothing embeds it; name a teacher"),
    ({"banks": {"b": {"labels": "/nowhere/names.txt"}}}, r"build\.banks\.b\.labels /nowhere/names\.txt: no such file$"),
    ({"banks": {"b": {"labels": ["a"], "templates": "imagenet"}}}, r"banks\.b\.templates imagenet: .* \(nor openai or"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES)
def test_mistakes_are_one_line(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        build(folder, **settings)
    assert "\n" not in str(refused.value)


def test_labels_of_a_file_are_embedded_by_the_recorded_teacher(folder: Path, tmp_path: Path) -> None:
    options = ["--labels", str(folder / "names.txt"), "--templates", str(folder / "templates.txt")]
    command = ["select", str(folder / "out"), "--output", str(tmp_path / "s"), *options, "--keep-confident", "0.5"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"--labels {folder / 'names.txt'}: 2 repeated labels left out\n"
    views = open_dataset(str(folder / "out")).numpy("embeddings/tiny/image", "a", "view_000").astype(np.float32)
    rows = pq.read_table(tmp_path / "s").to_pylist()
    assert len(rows) == 4
    for row in rows:
        assert row["label"] == NAMES[int((views[int(row["key"])] @ by_evaluation(folder).T).argmax())]


def test_other_weights_and_a_folder_that_is_gone_are_refused(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(folder / "out"))
    weights = folder / "model" / "open_clip_model.safetensors"
    own = weights.read_bytes()
    save_open_clip(tmp_path / "other", seed=1)
    try:
        weights.write_bytes((tmp_path / "other" / weights.name).read_bytes())
        with pytest.raises(ModelError, match=r"recorded teacher cannot be loaded here: .*sha256 is"):
            embed_recorded(dataset, "tiny", str(folder / "names.txt"))
        weights.unlink()
        with pytest.raises(ModelError, match=r"recorded teacher cannot be loaded here: .*no weights in that folder"):
            embed_recorded(dataset, "tiny", str(folder / "names.txt"))
    finally:
        weights.write_bytes(own)
