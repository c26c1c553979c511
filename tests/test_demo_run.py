"""The whole demo, small: what it prints runs when pasted, and a second run does none of the work again."""

import io
import json
import shlex
import tarfile
import xml.etree.ElementTree
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import reinforce
from reinforce.cli import app
from reinforce.config import ConfigError
from reinforce.demo.captions import TEMPLATES, names
from reinforce.demo.run import STUDENTS, TEACHERS, run_demo, write_depth_scenes, write_unpaired_scenes
from reinforce.demo.scenes import draw_scene
from reinforce.demo.shards import ODD_EVERY, write_scenes
from reinforce.prompts import TEMPLATES_FILE
from reinforce.shards.corpora import open_corpus
from reinforce.student.journal import read_metrics
from tests.benchmarks.clean_targets import write_with_clean_targets

OUTPUT = Path("demo")
NUM_STEPS = 3


def demo(num_images: int = 60) -> str:
    """What the demo prints; fails unless all went well."""
    printed = io.StringIO()
    console = Console(file=printed, width=120)
    assert run_demo(OUTPUT, num_images, console, num_steps=NUM_STEPS, num_test_images=48) == 0
    return printed.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the notes on runs, which a second run adds to."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(path): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the demo ran, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, demo()


@pytest.fixture(autouse=True)
def _beside_it(first: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(first[0])


def test_a_table_of_teachers_and_students_and_a_figure(first: tuple[Path, str]) -> None:
    lines = first[1].splitlines()
    rows = {
        line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] in [[n] for n in (*TEACHERS, *STUDENTS)]
    }
    assert list(rows) == [*TEACHERS, *STUDENTS]
    assert all(len(row) == 6 for row in rows.values())
    shares = {name: [float(share) for share in row[1:]] for name, row in rows.items()}
    assert all(0 <= share <= 1 for row in shares.values() for share in row)
    assert min(shares[name][0] for name in TEACHERS) > 0.8
    figure = xml.etree.ElementTree.parse(OUTPUT / "accuracy.svg")
    assert figure.getroot().tag.endswith("svg")


def test_students_see_the_same_and_learn_from_different_things(first: tuple[Path, str]) -> None:
    provenance = {
        name: json.loads((OUTPUT / "students" / name / "student" / "student.json").read_text()) for name in STUDENTS
    }
    recipes = {name: document["recipe"]["student"] for name, document in provenance.items()}
    differing = {field for field in recipes["clip"] if recipes["clip"][field] != recipes["mobileclip"][field]}
    assert differing == {"loss", "data"}
    assert [recipes[name]["loss"]["kind"] for name in STUDENTS] == ["clip", "mobileclip"]
    assert [recipes[name]["data"]["captioners"] for name in STUDENTS] == [[], None]
    rows = {name: read_metrics(OUTPUT / "students" / name) for name in STUDENTS}
    for of_run in rows.values():
        assert [row["step"] for row in of_run if row["kind"] == "evaluation"] == [1, 2, 3]
    left_out = [[row["left_out"] for row in of_run if row["kind"] == "train"][-1] for of_run in rows.values()]
    assert left_out[0] == left_out[1]


def test_again_it_says_that_all_is_done_and_changes_nothing(first: tuple[Path, str]) -> None:
    before = contents(OUTPUT)
    printed = demo()
    assert printed.count(f"all {NUM_STEPS} steps were taken before") == len(STUDENTS)
    assert printed.count("found, written before") == 2
    assert contents(OUTPUT) == before
    of_first, of_second = (text[text.index("\nmodel") :] for text in (first[1], printed))
    assert of_first == of_second


def test_every_command_that_is_printed_can_be_pasted(first: tuple[Path, str]) -> None:
    before = contents(OUTPUT)
    commands = [shlex.split(line) for line in first[1].splitlines() if line.startswith("reinforce ")]
    assert [command[1] for command in commands] == ["build", "inspect", *["train-student"] * 2, *["evaluate"] * 2]
    for command in commands:
        result = CliRunner().invoke(app, command[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        if command[1] == "train-student":
            assert result.stdout.startswith(f"all {NUM_STEPS} steps were taken before")
    assert contents(OUTPUT) == before


def test_scenes_of_another_number_are_refused(first: tuple[Path, str]) -> None:
    with pytest.raises(ConfigError, match="holds 60 scenes, not the 501 of this demo"):
        demo(num_images=501)


def test_test_scenes_are_others_and_all_is_right_with_them(tmp_path: Path) -> None:
    num_images = ODD_EVERY + 20
    (shard,) = write_scenes(tmp_path, num_images=num_images, seed=1, clean=True)
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert {name.split(".", 1)[1] for name in members} == {"jpg", "txt", "cls", "json"}
    assert len(members) == 4 * num_images
    scenes = [draw_scene((1 << 24) + index) for index in range(num_images)]
    for index, scene in enumerate(scenes):
        facts = json.loads(members[f"00000{index:04d}.json"])
        assert (facts["noise"], facts["image"], facts["class"]) == ("right", "plain", scene.things[0].kind)
        assert names(members[f"00000{index:04d}.txt"].decode(), scene.things[0])
    assert (tmp_path / TEMPLATES_FILE).read_text().splitlines() == list(TEMPLATES)


def test_scenes_with_depth_are_written_once_and_a_dataset_can_be_made_of_them(tmp_path: Path) -> None:
    printed = []
    for _ in range(2):
        console = Console(file=io.StringIO(), width=200)
        write_depth_scenes(tmp_path, 10, console, num_test_images=8)
        assert isinstance(console.file, io.StringIO)
        printed.append(console.file.getvalue())
    assert [line for line in printed[1].splitlines() if "before" in line][:3] == [
        f"{tmp_path / 'depth' / name}: {number} scenes found, written before"
        for name, number in (("scenes", 10), ("validation", 4), ("test", 8))
    ]
    with pytest.raises(ConfigError, match="scenes holds 10 scenes, not the 11 of this demo; remove it"):
        write_depth_scenes(tmp_path, 11)  # in as many shards
    keys = {}
    for name, num_images in (("scenes", 10), ("validation", 4), ("test", 8)):
        with tarfile.open(tmp_path / "depth" / name / "00000.tar") as tar:
            members = tar.getmembers()
            images = {member.name: tar.extractfile(member).read() for member in members if ".jpg" in member.name}  # type: ignore[union-attr]
        assert sum(member.name.endswith(".depth.png") for member in members) == len(images) == num_images
        keys[name] = set(images.values())
    assert not (keys["scenes"] & keys["test"] | keys["validation"] & keys["test"])
    (command,) = [line for line in printed[0].splitlines() if line.startswith("reinforce build")]
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--set", "build.views.count=1"])
    assert result.exit_code == 0, result.stderr
    assert "10 samples, 10 kept" in result.stdout + result.stderr


def test_scenes_and_sentences_about_others_are_written_once_and_a_student_learns_from_them(tmp_path: Path) -> None:
    printed = []
    for _ in range(2):
        console = Console(file=io.StringIO(), width=200)
        write_unpaired_scenes(tmp_path, 12, console, num_test_images=8)
        assert isinstance(console.file, io.StringIO)
        printed.append(console.file.getvalue())
    found = [line.split(": ")[1] for line in printed[1].splitlines() if "before" in line]
    kinds = ("12 scenes", "12 sentences", "4 scenes", "8 scenes")
    assert found == [f"{kind} found, written before" for kind in kinds]
    sentences = tmp_path / "unpaired" / "sentences"
    (sentences / "00001.txt").write_bytes(b"one more\n")
    with pytest.raises(ConfigError, match="sentences holds 13 sentences, not the 12 of this demo; remove it"):
        write_unpaired_scenes(tmp_path, 12, num_test_images=8)
    (sentences / "00001.txt").unlink()
    (command,) = [line for line in printed[0].splitlines() if line.startswith("reinforce build")]
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--set", "build.views.count=1"])
    assert result.exit_code == 0, result.stderr
    reinforced = tmp_path / "unpaired" / "reinforced"
    dataset = reinforce.open_dataset(str(reinforced))
    assert dataset.spine("00000").column("captions").to_pylist() == [[]] * 12
    corpus = open_corpus(dataset, "captions")
    assert corpus.stems == ["corpora/captions/00000"]
    with corpus.open_sentences(corpus.stems[0]) as file:
        assert sum(text is not None for text in file.read().column("text").to_pylist()) > 6
    # What the study of stored views compares with: the same sizes, another target, still a dataset.
    clean = write_with_clean_targets(reinforced, tmp_path / "clean", 12)
    embeddings = reinforce.open_dataset(str(clean)).table("embeddings/demo_a/image", "00000")
    assert embeddings.column("view_001").equals(embeddings.column("view_000"))
    losses = []
    for place in (reinforced, clean):
        run = tmp_path / f"run-{place.name}"
        options = ["student.steps=2", "student.batch_size=8", "student.data.sentences.batch_size=6"]
        options += ["student.log_every=1", "student.optimizer.warmup_steps=0"]
        reinforce.train_student(str(place), str(run), "demo_dime_fm", overrides=options)
        losses.append([row["loss"] for row in read_metrics(run) if row["kind"] == "train"])
        assert (run / "student" / "student.json").is_file()
    assert losses[0][0] != losses[1][0]
    arguments = ["evaluate", str(run / "student"), "--dataset", str(tmp_path / "unpaired" / "test")]
    result = CliRunner().invoke(app, [*arguments, "--bank", str(reinforced / "banks" / "scenes"), "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)[0]["num_samples"] == 8
