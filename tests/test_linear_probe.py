"""The probe is at its optimum, knows nothing of the test labels, and counts what it could not use."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy

from reinforce.config import ConfigError, ModalityConfig
from reinforce.demo import MODELS
from reinforce.evaluation import LinearTask, evaluate_models, probe, render_class_table, render_table
from reinforce.evaluation.model import EmbeddingModel
from reinforce.evaluation.probe import Probe, choose_probe, held_out_rows
from tests.benchmarks import cifar10_labels
from tests.tars import encode, write_tar
from tests.test_evaluate import (
    COLOURS,
    Painter,
    colour_bytes,
    painter,
    refused,
    text_of,
    write_colours,
    write_selection,
)

NUM_CLASSES = 4
COLOUR_LABELS = [("red", "0"), ("green", "1"), ("blue", "2"), ("grey", "3")]


def noisy_clusters(num_rows: int = 240, dim: int = 12, noise: float = 0.5) -> tuple[Tensor, Any]:
    """Rows about one centre a class, off the origin, ten times as wide along some axes as along others."""
    generator = np.random.default_rng(7)
    labels = generator.integers(0, NUM_CLASSES, num_rows)
    rows = generator.normal(size=(NUM_CLASSES, dim))[labels] + noise * generator.normal(size=(num_rows, dim)) + 3
    return torch.from_numpy(rows * np.logspace(0, -1, dim)).float(), labels


def gradient(found: Probe, features: Tensor, labels: Any) -> float:
    """The norm of the derivatives of the objective as it is documented, by autograd."""
    weights, intercepts = (part.clone().requires_grad_() for part in (found.weights, found.intercepts))
    loss = cross_entropy(features.double() @ weights.T + intercepts, torch.from_numpy(labels))
    loss = loss + found.l2 / 2 * weights.square().sum()
    derivatives = torch.autograd.grad(loss, (weights, intercepts))
    return float(torch.cat([part.flatten() for part in derivatives]).norm())


def test_the_optimum_is_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = noisy_clusters()
    found = choose_probe(features, labels, NUM_CLASSES)
    assert found is not None
    assert (found.probe.is_converged, found.num_not_converged) == (True, 0)
    assert gradient(found.probe, features, labels) < 1e-5
    assert gradient(replace(found.probe, l2=2 * found.probe.l2), features, labels) > 1e-5
    again = choose_probe(features, labels, NUM_CLASSES)
    assert again is not None
    assert torch.equal(again.probe.weights, found.probe.weights)
    assert again.held_out_accuracy == found.held_out_accuracy
    monkeypatch.setattr(probe, "BLOCK_VALUES", 100)
    in_blocks = choose_probe(features, labels, NUM_CLASSES)
    assert in_blocks is not None
    assert in_blocks.probe.l2 == found.probe.l2
    assert torch.allclose(in_blocks.probe.weights, found.probe.weights, rtol=1e-3, atol=1e-3)


def test_l2_is_the_best_of_the_held_out_part() -> None:
    features, labels = noisy_clusters(num_rows=60, dim=30, noise=2.0)
    is_held_out = held_out_rows(labels, NUM_CLASSES)
    shares = [(is_held_out & (labels == label)).sum() / (labels == label).sum() for label in range(NUM_CLASSES)]
    assert min(shares) > 0.1
    assert max(shares) <= 0.2
    found = choose_probe(features, labels, NUM_CLASSES)
    assert found is not None
    rest = torch.from_numpy(np.flatnonzero(~is_held_out))
    problem = probe._Problem(features, torch.from_numpy(labels), rest, NUM_CLASSES)

    def accuracy(l2: float) -> float:
        fitted = problem.fit(l2, None)
        scores = features[is_held_out].double() @ fitted.weights.T + fitted.intercepts
        return float((scores.argmax(dim=1).numpy() == labels[is_held_out]).mean())

    tried = {l2: accuracy(l2) for l2 in (1.0, 1e-2, 1e-4)}
    assert found.held_out_accuracy == accuracy(found.probe.l2)
    assert found.held_out_accuracy >= max(tried.values()) > min(tried.values())


def test_a_fit_that_stops_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 2)
    found = choose_probe(*noisy_clusters(), NUM_CLASSES)
    assert found is not None
    assert not found.probe.is_converged
    assert found.num_not_converged > found.num_fits // 2


def write_training(folder: Path, labels: Sequence[tuple[str, str]]) -> str:
    """Files other than those of `write_colours`."""
    members = []
    for index, (colour, label) in enumerate(labels):
        image = encode(Image.new("RGB", (13, 9), COLOURS[colour]))
        members += [(f"t{index}.png", image), (f"t{index}.cls", label.encode())]
    write_tar(folder / "train" / "a.tar", members)
    return str(folder / "train")


def words_of(table: Any) -> str:
    """A table's text as one line, wherever its lines break."""
    return " ".join(text_of(table).split())


def test_what_is_separable_is_separated(tmp_path: Path) -> None:
    uri, train = write_colours(tmp_path, COLOUR_LABELS), write_training(tmp_path, COLOUR_LABELS * 4)
    result = LinearTask(uri, train=[train]).evaluate(painter())
    assert (result.top1, result.mean_per_class, result.top5) == (1.0, 1.0, None)
    assert (result.num_samples, result.num_train, result.num_held_out, result.num_features) == (4, 16, 4, 3)
    assert (result.held_out_top1, result.is_converged) == (1.0, True)
    assert [row.accuracy for row in result.classes] == [1.0] * 4
    shown = words_of(render_table([result]))
    assert "4 samples, 4 classes, a probe of 16 others" in shown
    assert "painter: 3 features, l2 1, chosen by 4 of them at top-1 1.0000" in shown
    assert not result.notes
    assert text_of(render_class_table([result])).split()[:3] == ["painter", "class", "samples"]
    assert result.to_json()["task"] == "linear"


def test_test_labels_choose_nothing(tmp_path: Path) -> None:
    confused = [*COLOUR_LABELS * 4, ("red", "1"), ("grey", "0"), ("blue", "3")]
    train = write_training(tmp_path, confused)
    right = LinearTask(write_colours(tmp_path, COLOUR_LABELS), train=[train]).evaluate(painter())
    turned = [(colour, str((int(label) + 1) % 4)) for colour, label in COLOUR_LABELS]
    wrong = LinearTask(write_colours(tmp_path / "wrong", turned), train=[train]).evaluate(painter())
    assert (right.top1, wrong.top1) == (1.0, 0.0)
    of_probe = ("l2", "held_out_top1", "gradient_norm", "num_iterations")
    assert [getattr(right, name) for name in of_probe] == [getattr(wrong, name) for name in of_probe]


def breaks_on_grey(model: EmbeddingModel) -> EmbeddingModel:
    def encode(pixels: Tensor) -> Tensor:
        colours = model.encode_image(pixels)
        return torch.where((colours.std(dim=1) < 0.01)[:, None], torch.nan, colours)

    return replace(model, encode_image=encode)


def test_what_is_not_used_is_counted_for_both(tmp_path: Path) -> None:
    labels = [*COLOUR_LABELS[:3] * 40, ("grey", "3"), ("red", "x"), ("red", "9")]
    uri, train = write_colours(tmp_path, [*COLOUR_LABELS, ("red", "cat")]), write_training(tmp_path, labels)
    select = write_selection(tmp_path / "s.parquet", [("a", str(index)) for index in (0, 1, 2, 3, 4)])
    result = LinearTask(uri, train=[train], select=select).evaluate(breaks_on_grey(painter()))
    assert result.drops == {"bad_label": 1}
    assert result.train_drops == {"bad_label": 1, "label_out_of_range": 1, "non_finite": 1}
    assert (result.num_train, result.num_non_finite, result.top1) == (120, 1, 0.75)
    assert "painter: classes without an image to train on: 1" in result.notes
    assert "dropped of --train: bad_label 1, label_out_of_range 1, non_finite 1" in words_of(render_table([result]))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    uri, train = write_colours(tmp_path, COLOUR_LABELS), write_training(tmp_path, COLOUR_LABELS)

    def command(**options: Any) -> Callable[[], object]:
        return lambda: evaluate_models(
            [str(MODELS / "demo-a")], uri, console=Console(quiet=True), device="cpu", threads=1, **options
        )

    assert "--task linear: pass --train SHARDS" in refused(command(task="linear"))
    assert "--train: only for --task linear" in refused(command(train=[train]))
    for option in ("templates", "bank", "labels"):
        wrong = command(task="linear", train=[train], **{option: "x"})
        assert f"--{option}: only for --task zeroshot" in refused(wrong)
    assert "only for --task zeroshot or linear" in refused(command(task="retrieval", classnames="x"))
    assert "a.tar is evaluated too" in refused(command(task="linear", train=[uri]))
    assert "no class has two images" in refused(command(task="linear", train=[train]))


def test_training_labels_of_other_names_are_refused(tmp_path: Path) -> None:
    """Beside the shards, or above them: where those of --dataset may lie too, in another spelling."""
    uri, train = write_colours(tmp_path / "a", COLOUR_LABELS), write_training(tmp_path / "b", COLOUR_LABELS * 3)
    names = [name.upper() for name in COLOURS]
    beside = tmp_path / "b" / "classnames.txt"
    beside.write_text("\n".join(names))
    assert LinearTask(uri, train=[train]).evaluate(painter()).top1 == 1.0
    beside.write_text("\n".join([*names[1:], names[0]]))
    assert "--train: label 0 is GREEN in" in refused(lambda: LinearTask(uri, train=[train]))
    given = LinearTask(uri, train=[train], classnames=str(tmp_path / "a" / "classnames.txt"))
    assert given.classnames == tuple(COLOURS)
    beside.write_text("\n".join(names[:3]))
    assert "label 3 is no class in" in refused(lambda: LinearTask(uri, train=[train]))


def test_what_is_evaluated_is_not_trained_on(tmp_path: Path) -> None:
    """A copy of the evaluated shard under another name among others, and a link to its folder."""
    uri, train = write_colours(tmp_path, COLOUR_LABELS), write_training(tmp_path, COLOUR_LABELS * 3)
    shutil.copy(tmp_path / "test" / "a.tar", tmp_path / "train" / "b.tar")
    result = LinearTask(uri, train=[train]).evaluate(painter())
    assert (result.num_samples, result.num_train, result.train_drops) == (4, 12, {"also_evaluated": 4})
    assert "dropped of --train: also_evaluated 4" in words_of(render_table([result]))
    select = write_selection(tmp_path / "s.parquet", [("a", "0"), ("a", "1")])
    narrowed = LinearTask(uri, train=[train], select=select).evaluate(painter())
    assert (narrowed.num_samples, narrowed.num_train, narrowed.train_drops) == (2, 14, {"also_evaluated": 2})
    (tmp_path / "link").symlink_to(tmp_path / "test")
    linked = LinearTask(uri, train=[str(tmp_path / "link")])
    assert "is evaluated too; give other shards" in refused(lambda: linked.evaluate(painter()))


def test_images_of_a_modality_are_told_apart_by_their_own_bytes(tmp_path: Path) -> None:
    def write(folder: str, images: Sequence[tuple[int, str]]) -> str:
        """Thermal images alone, or beside one and the same RGB image."""
        members = []
        for index, (level, label) in enumerate(images):
            members.append((f"{index}.ir.png", encode(Image.new("L", (12, 9), level))))
            members.append((f"{index}.cls", label.encode()))
        write_tar(tmp_path / folder / f"{folder}.tar", members)
        return str(tmp_path / folder)

    (tmp_path / "classnames.txt").write_text("cold\nhot")
    uri, train = write("test", [(9, "0"), (250, "1")]), write("train", [(8, "0"), (12, "0"), (240, "1"), (250, "1")])
    result = LinearTask(uri, train=[train], modality=ModalityConfig(suffix="ir.png")).evaluate(painter())
    assert (result.num_train, result.train_drops) == (3, {"also_evaluated": 1})


def test_cifar10s_labels_are_those_of_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the header of the recipe `dime_fm_cifar10` writes for its probe, of shards without labels."""
    cifar10, images = tmp_path / "data" / "cifar10", range(3)
    uri = write_colours(cifar10, COLOUR_LABELS)
    members = [(f"{c}_{i}.jpg", encode(Image.new("RGB", (9 + i, 9), COLOURS[c]))) for i in images for c in COLOURS]
    write_tar(cifar10 / "train" / "b.tar", members)
    unlabelled = LinearTask(uri, train=[str(cifar10 / "train")])
    assert "has a .cls member" in refused(lambda: unlabelled.evaluate(painter()))
    monkeypatch.setattr("sys.argv", ["cifar10_labels", str(tmp_path / "labelled"), "--shared", str(tmp_path)])
    cifar10_labels.main()
    result = LinearTask(uri, train=[str(tmp_path / "labelled")]).evaluate(painter())
    assert (result.num_train, result.top1, result.train_drops) == (12, 1.0, {})


def test_evaluated_shards_without_labels_are_found_before_the_training_images_are_embedded(tmp_path: Path) -> None:
    train, module = write_training(tmp_path, COLOUR_LABELS * 3), Painter()
    write_tar(tmp_path / "bare" / "a.tar", [("0.png", colour_bytes("red"))])
    nameless = write_colours(tmp_path, [("red", "0"), ("blue", "9")])

    def probed(uri: str) -> Callable[[], object]:
        return lambda: LinearTask(uri, train=[train]).evaluate(painter(module))

    for uri, message in ((str(tmp_path / "bare"), "has a .cls member"), (nameless, "1 of 2 labels of")):
        module.seen.clear()
        assert message in refused(probed(uri))
        assert sum(len(pixels) for pixels in module.seen) <= 2


def test_a_model_in_the_table(tmp_path: Path) -> None:
    """A trained network, and class names that are given."""
    uri, train = write_colours(tmp_path, COLOUR_LABELS), write_training(tmp_path, COLOUR_LABELS * 3)
    (tmp_path / "classnames.txt").rename(tmp_path / "names")
    with pytest.raises(ConfigError, match="pass --classnames FILE"):
        LinearTask(uri, train=[train])
    (result,) = evaluate_models(
        [str(MODELS / "demo-a")],
        uri,
        task="linear",
        train=[train],
        classnames=str(tmp_path / "names"),
        console=Console(quiet=True),
        device="cpu",
        threads=1,
    )
    document = result.to_json()
    assert (document["top1"], document["num_features"], document["modality"]) == (1.0, 64, "rgb")
    assert len(document["classes"]) == len(COLOURS)
