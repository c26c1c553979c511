"""Class names by a recorded teacher: as evaluation embeds them, with the weights of the dataset and no others."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from reinforce import open_dataset
from reinforce.class_bank import embed_classes
from reinforce.cli import app
from reinforce.config import BuildConfig
from reinforce.evaluation import load_embedding_model, zeroshot
from reinforce.plan import load_plan
from reinforce.weights import ModelError
from tests.fakes import run
from tests.models import save_open_clip
from tests.tars import pairs, write_tar

NAMES = ("cat", "red boat", "sky")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight images by a tiny open_clip teacher, class names and two templates."""
    folder = tmp_path_factory.mktemp("bank")
    model = save_open_clip(folder / "model")
    write_tar(folder / "in" / "a.tar", pairs(8))
    config = {"teachers": {"tiny": {"model": model}}, "views": {"count": 0}, "batch_size": 4, "workers": 1}
    run(load_plan(BuildConfig.model_validate(config)), folder / "in", folder / "out")
    (folder / "names.txt").write_text("\n".join(NAMES))
    (folder / "templates.txt").write_text("a photo of a {}.\nthe {}\n")
    return folder


def test_classes_are_embedded_as_evaluation_does(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(folder / "out"))
    names, templates = str(folder / "names.txt"), str(folder / "templates.txt")
    bank = embed_classes(dataset, "tiny", names, templates)
    model = load_embedding_model(str(folder / "model"), torch.device("cpu"))
    with model.evaluating():
        expected = zeroshot.embed_classes(model, NAMES, ["a photo of a {}.", "the {}"]).numpy()
    np.testing.assert_allclose(bank.embeddings, expected, atol=1e-5)
    scale = dataset.signals[next(s for s in dataset.signals if s.kind == "image")]["model"]["logit_scale"]
    assert (bank.names, bank.logit_scale) == (NAMES, scale)
    output = tmp_path / "s"
    options = ["--labels", names, "--templates", templates, "--keep-confident", "0.5"]
    result = CliRunner().invoke(app, ["select", str(folder / "out"), "--output", str(output), *options])
    assert result.exit_code == 0, result.stderr
    views = dataset.numpy("embeddings/tiny/image", "a", "view_000").astype(np.float32)
    rows = pq.read_table(output).to_pylist()
    assert len(rows) == 4
    for row in rows:
        assert row["label"] == NAMES[int((views[int(row["key"])] @ expected.T).argmax())]


def test_other_weights_and_a_folder_that_is_gone_are_refused(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(folder / "out"))
    weights = folder / "model" / "open_clip_model.safetensors"
    own = weights.read_bytes()
    save_open_clip(tmp_path / "other", seed=1)
    try:
        weights.write_bytes((tmp_path / "other" / weights.name).read_bytes())
        with pytest.raises(ModelError, match=r"recorded teacher cannot be loaded here: .*sha256 is"):
            embed_classes(dataset, "tiny", str(folder / "names.txt"))
        weights.unlink()
        with pytest.raises(ModelError, match=r"recorded teacher cannot be loaded here: .*no weights in that folder"):
            embed_classes(dataset, "tiny", str(folder / "names.txt"))
    finally:
        weights.write_bytes(own)
