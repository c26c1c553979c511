"""Bad input to `reinforce label`: one clear line each, and the rest goes on where it can."""

import json
import struct
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import helper
from PIL import Image

from reinforce.deploy.label.command import main
from reinforce.deploy.label.inputs import MAX_IMAGE_BYTES, Inputs, Unusable
from tests.labelling import colour_card, save_colour_model
from tests.tars import encode

LABELS = "red 0.99, green 0.01, blue 0.00"


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and an image beside what is wrong."""
    save_colour_model(tmp_path / "model.onnx")
    (tmp_path / "good.png").write_bytes(encode(Image.new("RGB", (20, 20), (200, 100, 20))))
    (tmp_path / "notes.txt").write_text("not an image")
    monkeypatch.chdir(tmp_path)


def assert_refused(capture: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    """Exit status 2 and one line."""
    assert main(arguments) == 2
    out, error = capture.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("reinforce: ")
    assert says in error


def png_without_pixels(width: int, height: int) -> bytes:
    """The header of a PNG, and an empty chunk where its pixels begin."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def bad_inputs(folder: Path) -> dict[str, str]:
    """Things that cannot be labelled, and what is said of them."""
    jpeg = encode(Image.effect_noise((64, 48), 60), "JPEG")
    (folder / "page.jpg").write_text("<html>")
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "huge.png").write_bytes(png_without_pixels(20_000, 20_000))
    (folder / "empty").mkdir()
    return {
        "page.jpg": "not an image (begins with 3c 68",
        "cut.jpg": "a damaged or truncated image (image file is truncated",
        "zero.png": "an empty file",
        "huge.png": "more pixels than --max-pixels (20000x20000)",
        "empty": "no image in this folder",
        "missing.jpg": "no such file or directory",
        "nul\0.jpg": "embedded null byte",
    }


def test_bad_input_is_a_line_each_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = bad_inputs(tmp_path)
    arguments = [argument for name in said for argument in (str(tmp_path / name), "good.png")]
    status = main(["model.onnx", *arguments])
    out, error = capsys.readouterr()
    assert status == 1
    assert out.splitlines() == [f"good.png: {LABELS}"] * len(said)
    *lines, last = error.splitlines()
    assert last == "reinforce: 7 of 14 could not be labelled"
    for line, (name, words) in zip(lines, said.items(), strict=True):
        assert line.startswith(f"reinforce: {tmp_path}/{name}: {words}".replace("\0", "\\x00")), line
    status = main(["model.onnx", "--json", *arguments])
    out, error = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert (status, error) == (1, "reinforce: 7 of 14 could not be labelled\n")
    assert [row["path"] for row in rows] == arguments
    assert all(words in row["error"] for row, words in zip(rows[::2], said.values(), strict=True))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("red\t0.5\nRED\t0.6", "'RED' is in it twice"),
        ('{"red": 1, "red": 2}', "'red' is in it twice"),
        ('{"red": true}', "the value of 'red' is no number"),
        ('{"red": NaN}', "the value of 'red' is no number"),
        ('{"red": [1]}', "the value of 'red' is no number"),
        (f'{{"red": {"9" * 400}}}', "the value of 'red' is no number"),
        ('{"red": ' + "[" * 100_000, "not JSON"),
        ('{"red": 1', "not JSON"),
        ("red 0.5", "line 1 is not label, tab, value"),
        ("red\tx", "the value of 'red' is no number"),
        ("mauve\t0.5", "'mauve' is not among the labels"),
        ("\n", "nothing in it"),
        ("{}", "nothing in it"),
    ],
)
def test_files_of_thresholds_that_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "t").write_text(text)
    assert_refused(capsys, ["model.onnx", "--thresholds", "t", "good.png"], f"--thresholds t: {says}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no label in it"),
        (b" \n\n", "no label in it"),
        (b"red\nblue\n red", "'red' is in it twice"),
        (b"7\n7", "'7' is in it twice"),
        (b"red\nmauve", "the model does not know 'mauve'"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (None, "no such file or directory"),
    ],
)
def test_files_of_labels_that_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "l").write_bytes(content)
    assert_refused(capsys, ["model.onnx", "--labels", "l", "good.png"], f"--labels l: {says}")


def not_a_model(folder: Path, kind: str) -> Path:
    path = save_colour_model(folder / f"{kind}.onnx", colour_card(labels=None) if kind == "without labels" else None)
    if kind == "newer opset":
        return save_colour_model(path, opset=99)
    if kind == "no file":
        path.unlink()
    elif kind == "page":
        path.write_text("<html>" * 99)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    else:
        model = onnx.load(path)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        if kind == "other":
            metadata = {}
        elif kind == "version 2":
            metadata["reinforce.model"] = metadata["reinforce.model"].replace('"version": 1', '"version": 2')
        elif kind == "damaged":
            metadata["reinforce.label_embeddings"] = metadata["reinforce.label_embeddings"][:-4]
        elif kind == "huge number":
            card = json.loads(metadata["reinforce.model"])
            metadata["reinforce.model"] = json.dumps(card | {"mean": [10**400, 0, 0]})
        elif kind == "other size":
            metadata = replace(colour_card(), image_size=17).to_metadata()
        elif kind == "newer IR":
            model.ir_version = 99
        del model.metadata_props[:]
        helper.set_model_props(model, metadata)
        onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("no file", "no such file"),
        ("page", "not an ONNX file"),
        ("empty", "not an ONNX file"),
        ("truncated", "not an ONNX file"),
        ("other", "not exported by reinforce"),
        ("version 2", "of version 2; this software reads version 1"),
        ("damaged", "its metadata is damaged"),
        ("huge number", "its metadata is damaged (int too large to convert to float)"),
        ("other size", "does not take [batch, 3, 17, 17]"),
        ("newer opset", "written for a newer onnxruntime than"),
        ("newer IR", "written for a newer onnxruntime than"),
        ("without labels", "has no labels in it"),
    ],
)
def test_models_that_are_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path, kind: str, says: str) -> None:
    path = not_a_model(tmp_path, kind)
    # capfd: onnxruntime has a log of its own.
    assert_refused(capfd, [str(path), "good.png"], f"model {path}: ")
    assert_refused(capfd, [str(path), "good.png"], says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: MODEL, IMAGE"),
        (["model.onnx"], "required: IMAGE"),
        (["model.onnx", "-", "-"], "- is given twice"),
        (["model.onnx", "x", "--top-k", "0"], "--top-k: must be a whole number of at least 1, not 0"),
        (["model.onnx", "x", "--threads", "0"], "argument --threads: must be a whole number from 1 to 1024, not 0"),
        (["model.onnx", "x", "--threads", "1025"], "--threads: must be a whole number from 1 to 1024, not 1025"),
        (["model.onnx", "x", "--threshold", "nan"], "--threshold: must be a number, not nan"),
        (["model.onnx", "x", "--scale", "0"], "--scale: must be above 0"),
        (["model.onnx", "x", "--scores", "sigmoid"], "--scores: invalid choice: 'sigmoid'"),
        (["model.onnx", "x", "--top", "3"], "unrecognized arguments: --top 3"),
        (["model.onnx", "x", "--seconds", "3"], "--seconds: goes with --benchmark"),
        (["model.onnx", "-", "--benchmark"], "--benchmark: give files or folders"),
        (["model.onnx", "notes.txt", "--benchmark"], "none of the images can be labelled (notes.txt: not"),
    ],
)
def test_arguments_that_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert_refused(capsys, arguments, says)


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    tracemalloc.start()
    try:
        assert list(Inputs(["large.jpg"])) == [Unusable("large.jpg", "larger than 128 MiB")]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_model_that_gives_nonsense_is_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "black.png").write_bytes(encode(Image.new("RGB", (20, 20))))
    status = main(["model.onnx", "black.png", "good.png", "--top-k", "1"])
    out, error = capsys.readouterr()
    assert (status, out) == (1, "good.png: red 0.99\n")
    assert "the model's embedding of it is not finite" in error


def test_without_onnxruntime(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_refused(capsys, ["model.onnx", "good.png"], "label needs onnxruntime: pip install onnxruntime")
