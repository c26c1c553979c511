"""Labelling students end to end: images without captions train, the bank goes along, evaluation needs no teacher."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from reinforce.banks import resolve_banks, write_banks
from reinforce.config import BuildConfig, ConfigError
from reinforce.config.recipe import parse_recipe
from reinforce.evaluation import (
    MultiLabelResult,
    ZeroShotResult,
    evaluate_models,
    load_embedding_model,
    render_class_table,
    render_table,
)
from reinforce.evaluation.images import ShardImages
from reinforce.exchange.pack import pack
from reinforce.shards.banks import read_bank
from reinforce.storage import open_store
from reinforce.student.batch import Batch
from reinforce.student.journal import read_metrics
from reinforce.student.models import load_student
from reinforce.student.train import train_student
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_plan, fake_teachers, run
from tests.models import save_open_clip
from tests.students import plan_of, read, recipe, stopping_at
from tests.tars import image_bytes, pairs, write_tar

MODEL: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "projection": "mlp",
    "image_size": 32,
    "embed_dim": 12,
    "text": None,
}
LABELS = ("cat", "red boat", "sky", "Dog")
LOSS = {"kind": "clip4retrofit", "bank": "things", "bank_scale": 10.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of images without one caption, by one fake teacher, with two banks; and labelled shards."""
    folder = tmp_path_factory.mktemp("labelling")
    for stem, start in (("a", 0), ("b", 9)):
        write_tar(folder / "in" / f"{stem}.tar", [(f"{n}.png", image_bytes(n)) for n in range(start, start + 9)])
    teacher = FakeTeacher("large", dim=12, image_size=24)
    config = {"views": {"count": 3}, "source": {"captions": [], "max_captions": 0}}
    assert not run(fake_plan(config, teachers=[teacher], captioners=[]), folder / "in", folder / "data").failed
    banks = {"things": {"labels": LABELS}, "others": {"labels": ("sun", "moon")}}
    built = BuildConfig.model_validate({"banks": banks, "teachers": {"large": {"model": "fake"}}})
    write_banks(open_store(str(folder / "data")), resolve_banks(built), [teacher])
    # "Sky" is written twice, as two classes of the data set; it is one label.
    members = [part for n in range(10) for part in ((f"{n}.png", image_bytes(n)), (f"{n}.cls", str(n % 5).encode()))]
    write_tar(folder / "test" / "t.tar", members)
    (folder / "test" / "classnames.txt").write_text("dog\nSky\nRed  boat\ncat\nsky\n")
    return folder


def train(folder: Path, output: Path, *, dataset: Path | None = None, resume: bool = False, **student: Any) -> int:
    """The steps that were there before."""
    settings = {"model": MODEL, "loss": LOSS} | student
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere)
        uri = str(dataset or folder / "data")
        return train_student(uri, output, recipe(**settings), resume=resume, console=console).num_steps_before


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    train(folder, output, evaluation={"shards": [str(folder / "test")], "every_steps": 16}, steps=32, batch_size=8)
    return output


def evaluated(model: Path | str, folder: Path, **options: Any) -> ZeroShotResult:
    (result,) = evaluate_models([str(model)], str(folder / "test"), device="cpu", **options)
    assert isinstance(result, ZeroShotResult)
    return result


def test_images_without_captions_train(folder: Path, trained: Path) -> None:
    rows = [row for row in read_metrics(trained) if row["kind"] == "train"]
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert all(row["loss"] == pytest.approx(row["cosine"] + row["bank"], rel=1e-5) for row in rows)
    # The scale of its teacher, which it does not learn.
    assert [row["logit_scale"] for row in rows] == pytest.approx([10.0] * len(rows))
    assert not rows[-1]["left_out"]


def test_the_bank_goes_along_byte_for_byte(folder: Path, trained: Path) -> None:
    for name in ("bank.json", "large.parquet"):
        taken, stored = (place / "banks" / "things" / name for place in (trained / "student", folder / "data"))
        assert taken.read_bytes() == stored.read_bytes()
    assert [path.name for path in (trained / "student" / "banks").iterdir()] == ["things"]
    bank, made = (
        read_bank(str(trained / "student/banks/things")),
        json.loads((trained / "student/student.json").read_text()),
    )
    assert made["bank"] == {
        "name": "things",
        "teacher": "large",
        "fingerprint": bank.fingerprint,
        "weights_sha256": "0" * 64,
    }


@pytest.mark.parametrize("placement", ["apart", "together"])
def test_several_views_of_an_image_without_captions(folder: Path, placement: str) -> None:
    plan = plan_of(folder / "data", reads_captions=False, views_per_decode=2, views_placement=placement)
    batches: list[Batch] = list(read(plan, batch_size=6, epochs=2))
    assert sum(map(len, batches)) == 36
    assert all(
        batch.teacher_images.keys() == {"large"} and not batch.texts and not batch.teacher_texts for batch in batches
    )


def test_a_resumed_run_gives_the_same_student_and_takes_no_other_bank(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "whole", steps=6, checkpoint_every=3, log_every=1)
    with stopping_at(4), pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "run", steps=6, checkpoint_every=3, log_every=1)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    shutil.rmtree(elsewhere / "data/banks/things")
    shutil.copytree(folder / "data/banks/others", elsewhere / "data/banks/things")
    with pytest.raises(ConfigError, match=r"the run in .* was another: student.bank is"):
        train(elsewhere, tmp_path / "run", steps=6, checkpoint_every=3, log_every=1, resume=True)
    assert train(folder, tmp_path / "run", steps=6, checkpoint_every=3, log_every=1, resume=True) == 3
    whole = load_student(tmp_path / "whole/student").model.state_dict()
    for name, tensor in load_student(tmp_path / "run/student").model.state_dict().items():
        assert torch.equal(tensor, whole[name])


def test_evaluation_by_the_bank_in_its_folder(folder: Path, trained: Path) -> None:
    result = evaluated(trained / "student", folder)
    last = [row for row in read_metrics(trained) if row["kind"] == "evaluation"][-1]
    assert (result.top1, result.auroc) == (last["top1"], last["auroc"])
    # Four classes of five names, in the order of the names.
    model = load_embedding_model(str(trained / "student"), torch.device("cpu"))
    assert [row.name for row in result.classes] == ["Dog", "sky", "red boat", "cat"]
    assert [row.num_samples for row in result.classes] == [2, 4, 2, 2]
    assert result.bank == "things"
    student = load_student(trained / "student")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (student.mean, student.std))
    with model.evaluating():
        expected = student.model.encode_image((scaled - mean) / std, normalize=True)
        torch.testing.assert_close(model.embed_images(pixels), expected)


def test_any_bank_of_its_teacher_and_no_other(folder: Path, trained: Path, tmp_path: Path) -> None:
    student = trained / "student"
    own = evaluated(student, folder)
    assert evaluated(student, folder, bank=str(folder / "data/banks/things")) == own
    assert evaluated(f"local-dir:{student}", folder, bank=str(student / "banks/things")).top1 == own.top1
    with pytest.raises(ConfigError, match="bank others has no label 'dog', nor 4 more of 5 class names"):
        evaluated(student, folder, bank=str(folder / "data/banks/others"))
    with pytest.raises(ConfigError, match="--templates: a bank has its own"):
        evaluated(student, folder, bank=str(student / "banks/things"), templates="openai")
    with pytest.raises(ConfigError, match=r"--templates: .* is scored by bank things, which has its own"):
        evaluated(student, folder, templates="openai")
    with pytest.raises(ConfigError, match="--bank: only for --task zeroshot"):
        evaluated(student, folder, bank=str(student / "banks/things"), task="retrieval")
    stranger = tmp_path / "stranger"
    shutil.copytree(student, stranger)
    made = json.loads((stranger / "student.json").read_text())
    made["bank"]["weights_sha256"] = "1" * 64
    (stranger / "student.json").write_text(json.dumps(made))
    with pytest.raises(ConfigError, match=r"is of large, whose weights .*stranger was not trained from"):
        evaluated(stranger, folder)
    shutil.rmtree(stranger / "banks")
    with pytest.raises(
        ConfigError, match="an image tower alone, and its folder has no bank or several; pass --bank URI"
    ):
        evaluated(stranger, folder)


def test_a_model_with_texts_of_its_own_may_be_scored_by_a_bank(folder: Path, tmp_path: Path) -> None:
    name = save_open_clip(tmp_path / "model", embed_dim=12)
    result = evaluated(name, folder, bank=str(folder / "data/banks/things"))
    assert result.notes == (f"{name}: bank things is of other weights, those of large",)
    assert evaluated(name, folder).bank is None
    wide = save_open_clip(tmp_path / "wide", embed_dim=16)
    with pytest.raises(ConfigError, match=r"its labels have 12 values, an image of .* has 16"):
        evaluated(wide, folder, bank=str(folder / "data/banks/things"))


def test_scenes_of_several_labels(folder: Path, trained: Path, tmp_path: Path) -> None:
    """By hand: the share of (with, without) pairs in the right order, of each label."""
    scenes = [["cat", "Sky"], ["sky"], ["cat", "unicorn"], [], ["dog"]]
    members = []
    for n, labels in enumerate(scenes):
        members += [(f"{n}.png", image_bytes(n)), (f"{n}.json", json.dumps({"labels": labels}).encode())]
    write_tar(tmp_path / "t.tar", members)
    (result,) = evaluate_models([str(trained / "student")], str(tmp_path), labels="json.labels", device="cpu")
    assert isinstance(result, MultiLabelResult)
    assert (result.num_samples, result.drops, result.counts) == (4, {"missing_label": 1}, {"labels_without_class": 1})
    assert [(row.name, row.num_samples) for row in result.classes] == [
        ("cat", 2),
        ("red boat", 0),
        ("sky", 2),
        ("Dog", 1),
    ]
    found = ShardImages(str(tmp_path), needs="labels", field_name="json.labels")
    model = load_embedding_model(str(trained / "student"), torch.device("cpu"))
    with model.evaluating():
        images = found.embed(model).embeddings.numpy()
    cosines = images @ read_bank(str(folder / "data/banks/things")).embeddings.T
    by_hand = []
    for column, carriers in ((0, [0, 2]), (2, [0, 1]), (3, [3])):
        rest = [row for row in range(4) if row not in carriers]
        by_hand.append(np.mean([cosines[a, column] > cosines[b, column] for a in carriers for b in rest]))
    assert [row.auroc for row in result.classes] == [by_hand[0], None, by_hand[1], by_hand[2]]
    assert result.auroc == pytest.approx(np.mean(by_hand))
    Console(file=io.StringIO()).print(render_table([result]), render_class_table([result]))
    with pytest.raises(ConfigError, match=r"has labels in json.tags: pass --labels json.FIELD"):
        evaluate_models([str(trained / "student")], str(tmp_path), labels="json.tags", device="cpu")


def test_another_bank_to_evaluate_by(folder: Path, tmp_path: Path) -> None:
    shards = {"shards": [str(folder / "test")], "bank": "things"}
    train(folder, tmp_path / "run", steps=2, loss={"kind": "clip4retrofit", "bank_weight": 0}, evaluation=shards)
    assert (tmp_path / "run/student/banks/things/large.parquet").is_file()
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["kind"] == "evaluation"
    assert rows[0]["loss"] == rows[0]["cosine"]


def test_what_a_run_cannot_have_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            train(folder, tmp_path / "run", **options)

    shards = {"shards": [str(folder / "test")]}
    refused("loss.bank: the dataset has no bank 'none'; it has others, things", loss=LOSS | {"bank": "none"})
    refused(
        "evaluation.bank: a student without a text tower",
        loss={"kind": "clip4retrofit", "bank_weight": 0},
        evaluation=shards,
    )
    refused("bank others has no label 'dog'", evaluation=shards | {"bank": "others"})
    refused("embed_dim: must be 12", model=MODEL | {"embed_dim": 16})
    other = tmp_path / "other"
    shutil.copytree(folder / "data", other)
    shutil.rmtree(other / "banks/things")
    teacher = FakeTeacher("large", dim=12)
    teacher.text_content = lambda: {"weights_sha256": "2" * 64, "mantissa_bits": 7}  # type: ignore[method-assign]
    banks = BuildConfig.model_validate({"banks": {"things": {"labels": LABELS}}, "teachers": {"large": {"model": "f"}}})
    write_banks(open_store(str(other)), resolve_banks(banks), [teacher])
    refused("bank things is of other weights of large than its embeddings of the images", dataset=other)


def test_packed_tars_train_without_a_bank(folder: Path, tmp_path: Path) -> None:
    source = write_tar(tmp_path / "in" / "a.tar", pairs(6)).parent
    config = {"views": {"count": 1}, "source": {"max_captions": 1}}
    run(fake_plan(config, teachers=fake_teachers(), captioners=[]), source, tmp_path / "data")
    pack(str(tmp_path / "data"), str(tmp_path / "packed"), console=Console(file=io.StringIO()))
    options: dict[str, Any] = {
        "dataset": tmp_path / "packed",
        "steps": 2,
        "data": {"workers": 0, "teachers": ["large"]},
    }
    with pytest.raises(ConfigError, match="bank: packed tars hold no banks"):
        train(folder, tmp_path / "run", **options)
    train(folder, tmp_path / "run", loss={"kind": "clip4retrofit", "bank_weight": 0}, **options)
    assert not (tmp_path / "run/student/banks").exists()
    with pytest.raises(ConfigError, match="needs one teacher, not large, small"):
        train(folder, tmp_path / "other", dataset=tmp_path / "packed", loss={"kind": "clip4retrofit", "bank_weight": 0})


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"loss": {"kind": "clip4retrofit"}}, "kind clip4retrofit needs bank"),
        ({"loss": LOSS | {"distillation": 0.5}}, "distillation is no field of kind clip4retrofit"),
        ({"loss": LOSS | {"mask_same_captions": True}}, "mask_same_captions is no field of kind clip4retrofit"),
        ({"loss": {"kind": "mobileclip", "bank": "things"}}, "bank is no field of kind mobileclip"),
        ({"loss": {"kind": "clip", "bank_scale": 10.0}}, "bank_scale is no field of kind clip"),
        ({"loss": LOSS, "model": {"backbone": "resnet18"}}, "clip4retrofit trains an image tower"),
        ({"loss": LOSS, "model": {"architecture": "RN50"}}, "clip4retrofit trains an image tower"),
        ({"loss": LOSS, "data": {"captioners": ["c"]}}, "reads no captions; leave data.captioners out"),
        ({"loss": LOSS, "evaluation": {"shards": ["x"], "templates": "t"}}, "evaluation.templates: a bank has its own"),
        (
            {"model": {"backbone": "resnet18"}, "evaluation": {"shards": ["x"], "bank": "b"}},
            "evaluation.bank is for a student without a text tower",
        ),
    ],
)
def test_fields_of_other_kinds_are_refused(student: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_recipe({"student": {"model": MODEL, "steps": 1} | student})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_recipe_written_out_whole_is_still_one(trained: Path) -> None:
    made = json.loads((trained / "student/student.json").read_text())
    parse_recipe(made["recipe"])
