"""The dataset card: a header a hub can read, figures of this dataset, and nothing a person wrote is lost."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from reinforce.config import BuildConfig
from reinforce.inspection.dataset_card import _without_folder, write_dataset_card
from reinforce.shards.schema import CARD_FILE
from reinforce.storage import open_store
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_plan, fake_teachers, run
from tests.tars import pairs, write_tar

CONFIG = BuildConfig.model_validate(
    {
        "seed": 3,
        "views": {"count": 2},
        "workers": 7,
        "teachers": {"large": {"model": "local-dir:/home/someone/models/large"}},
        "captioners": {
            "fake": {"kind": "files", "path": "/home/someone/captions.parquet"},
            "far": {
                "kind": "openai",
                "model": "org/captioner",
                "endpoint": "http://10.0.0.7:8000/v1",
                "prompt": "Say.",
            },
        },
        "banks": {"things": {"labels": "/home/someone/names.txt", "templates": "openai"}},
    }
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    members = [*pairs(5), ("bad.png", b"not an image"), ("bad.txt", b"a | caption")]
    write_tar(tmp_path / "source/one.tar", members)
    run(fake_plan({"banks": {"things": {"labels": ["cat", "dog"]}}}), tmp_path / "source", tmp_path / "dataset")
    return tmp_path / "dataset"


def card_of(dataset: Path) -> tuple[dict[str, Any], str]:
    text = (dataset / CARD_FILE).read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_a_hub_finds_every_folder_and_a_reader_the_figures(dataset: Path) -> None:
    assert write_dataset_card(open_store(str(dataset)), CONFIG)
    header, body = card_of(dataset)
    assert header["license"] == "other"
    assert header["size_categories"] == ["n<1K"]
    for config in header["configs"]:
        assert list(dataset.glob(config["data_files"])), config
    assert {config["config_name"] for config in header["configs"]} >= {"samples", "embeddings-large-text-fake"}
    assert {"config_name": "banks-things-small", "data_files": "banks/things/small.parquet"} in header["configs"]
    assert "- bank of labels `things`: 2 labels x 1 template by large, small" in body
    assert "6 samples, 5 kept; dropped: 1 not_an_image" in body
    assert "| what `large` says |" in body
    assert "| `embeddings/large/image` | fake | 12 dims, 24 px |" in body
    assert "large: clean image to original captions" in body


def test_the_recipe_is_there_and_no_place_of_this_machine(dataset: Path) -> None:
    write_dataset_card(open_store(str(dataset)), CONFIG)
    _, body = card_of(dataset)
    recipe = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert recipe["build"]["seed"] == 3
    assert recipe["build"]["teachers"]["large"]["model"] == "local-dir:large"
    assert recipe["build"]["captioners"]["fake"]["path"] == "captions.parquet"
    assert recipe["build"]["captioners"]["far"]["model"] == "org/captioner"
    assert recipe["build"]["banks"]["things"] == {"labels": "names.txt", "templates": "openai"}
    text = (dataset / CARD_FILE).read_text()
    assert not any(word in text for word in ("/home", "10.0.0.7", str(dataset.parent), "workers"))


def test_what_a_person_wrote_stays_and_figures_are_renewed(dataset: Path) -> None:
    store = open_store(str(dataset))
    write_dataset_card(store, CONFIG)
    first = (dataset / CARD_FILE).read_bytes()
    write_dataset_card(store, CONFIG)
    assert (dataset / CARD_FILE).read_bytes() == first
    edited = first.decode().replace("license: other", "license: cc-by-4.0").replace("FILL IN: name", "Scenes, a name")
    (dataset / CARD_FILE).write_text(edited.replace("5 kept", "500 kept") + "\nMore of mine.\n")
    teachers = [*fake_teachers(), FakeTeacher("late", dim=4, image_size=16)]
    run(fake_plan(teachers=teachers), dataset.parent / "source", dataset)
    assert write_dataset_card(store, CONFIG)
    header, body = card_of(dataset)
    assert header["license"] == "cc-by-4.0"
    assert any(config["config_name"] == "embeddings-late-image" for config in header["configs"])
    assert "# Scenes, a name of this dataset" in body
    assert body.endswith("\nMore of mine.\n")
    assert "500 kept" not in body
    assert "the table of licences has no line for `late`" in body


def test_the_lines_of_the_header_stay_as_they_were_written(dataset: Path) -> None:
    store = open_store(str(dataset))
    write_dataset_card(store, CONFIG)
    header = "language:\n- no\nversion: 1.10  # of mine\n"
    text = (dataset / CARD_FILE).read_text()
    (dataset / CARD_FILE).write_text(text.replace("license: other\n", header).replace("n<1K", "1K<n<10K"))
    assert write_dataset_card(store, CONFIG)
    renewed = (dataset / CARD_FILE).read_text()
    assert header in renewed
    assert renewed.count("size_categories:\n- n<1K\n") == renewed.count("size_categories") == 1
    assert renewed.count("configs:") == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ViT-L-14:openai", "ViT-L-14:openai"),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("org/name", "org/name"),
        ("local-dir:/home/someone/model", "local-dir:model"),
        ("file:///home/someone/w.pt", "w.pt"),
        ("local-dir:s3://bucket/team/model?profile=someone", "local-dir:model"),
        ("https://someone:secret@host/w.pt?token=secret", "w.pt"),
    ],
)
def test_models_are_named_and_not_where_they_were(name: str, shown: str) -> None:
    assert _without_folder(name) == shown


@pytest.mark.parametrize("card", [b"# My own\n", b"---\n- a list\n---\n", b"---\na: [\n---\nno marks", b"caf\xe9"])
def test_a_card_without_marks_is_left_alone(dataset: Path, card: bytes) -> None:
    (dataset / CARD_FILE).write_bytes(card)
    assert not write_dataset_card(open_store(str(dataset)), CONFIG)
    assert (dataset / CARD_FILE).read_bytes() == card
