"""New labels on the device: open_clip's token ids, PyTorch's embeddings, and neither library in the process."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import onnx
import open_clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import reinforce
from reinforce.cli import app
from reinforce.config import StudentModelConfig
from reinforce.deploy import text_export
from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.label.session import load_model, open_session
from reinforce.deploy.label.texts import embed_labels, read_new_labels
from reinforce.deploy.label.tokenizer import ClipTokenizer
from reinforce.deploy.model_file import ModelCard, ModelFileError
from reinforce.deploy.text_export import clip_merges, export_text_onnx
from reinforce.deploy.text_file import TextCard
from reinforce.evaluation.model import load_embedding_model
from reinforce.evaluation.zeroshot import embed_classes
from reinforce.student.models import build_student, save_student
from reinforce.weights import ModelError, check_sha256
from tests.models import save_open_clip, save_siglip_like
from tests.tars import image_bytes

LABELS = ("red cat", "Fahrrad", "a very long label that says far more than fits", "犬", "men's shoes")
TEMPLATES = ("a photo of a {}.", "{} at night, a photo", "a {} that is called {}")
TOKENIZER = ClipTokenizer(clip_merges(), 12)


def tokens_of(text: str) -> np.ndarray:
    return np.asarray(open_clip.tokenize([text], context_length=12)[0].numpy())


PIECES = [
    "<start_of_text>",
    "<End_Of_Text>",
    "'s",
    "'ſ",
    "'LL",
    "&amp;",
    "&lt",
    "&#39;",
    "&nbsp;",
    "<b>",
    "\u3000",
    "İ",
    "_",
]
TEXTS = st.lists(
    # What Python's Unicode does not know yet may be letters to open_clip.
    st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=6)
    | st.text(st.characters(max_codepoint=0x17F), max_size=8)
    | st.sampled_from(PIECES),
    max_size=6,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example("the children's 3 dogs &amp; 12 boats, isn't it? they'll'VE #tag...!!")
@example("")
@example("街の写真 ½ Ⅻ ² ٣ ñ é 🐈‍⬛ ß İstanbul")
def test_token_ids_are_those_of_open_clip(text: str) -> None:
    if ftfy.fix_text(text) == text:
        np.testing.assert_array_equal(TOKENIZER([text])[0][0], tokens_of(text))


@pytest.mark.parametrize(
    "text",
    [
        "men’s ‘x’ “y”",
        "cafe\u0301",
        "ﬁne ŉ ﬅ",
        "ＦＵＬＬ　ｶﾀｶﾅ",
        "a\u2028b\x85c\r\nd\x07",
        "&rsquo;&EAcute;&#233;",
        "\x93hi\x94",
        "\ud83d\udc08",
    ],
)
def test_texts_are_repaired_as_ftfy_repairs_them(text: str) -> None:
    assert ftfy.fix_text(text) != text
    np.testing.assert_array_equal(TOKENIZER([text])[0][0], tokens_of(text))


def test_a_text_that_is_too_long_ends_with_its_end() -> None:
    fits, cut = " ".join(["cat"] * 10), " ".join(["cat"] * 11)
    tokens, lengths = TOKENIZER([fits, cut])
    assert lengths == [12, 13]
    np.testing.assert_array_equal(tokens[0], tokens[1])
    np.testing.assert_array_equal(tokens[1], tokens_of(cut))


@dataclass(frozen=True)
class Exported:
    """An image tower alone with the text tower of its teacher."""

    student: Path
    teacher: str
    image_file: Path
    text_file: Path
    output: str

    @property
    def card(self) -> ModelCard:
        return load_model(self.image_file, 1).card


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("text")
    teacher = save_open_clip(folder / "teacher")
    student = build_student(
        StudentModelConfig(backbone="test_efficientnet", embed_dim=24, text=None, image_size=32), seed=0
    )
    weights = folder / "teacher" / "open_clip_model.safetensors"
    save_student(student, folder / "student", extra={"teachers": {"large": check_sha256([weights], None)}})
    arguments = ["export", folder / "student", "--output", folder / "image.onnx", "--text", folder / "text.onnx"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--teacher", teacher])
    assert done.exit_code == 0, done.output
    return Exported(folder / "student", teacher, folder / "image.onnx", folder / "text.onnx", done.output)


def classes_of(model: str) -> np.ndarray:
    embedding_model = load_embedding_model(model, torch.device("cpu"))
    with embedding_model.evaluating():
        return np.asarray(embed_classes(embedding_model, LABELS, TEMPLATES).numpy())


def test_new_labels_are_embedded_as_the_teacher_does(exported: Exported) -> None:
    assert "text tower of large, 12 tokens to 24 values, fp32" in exported.output
    new = embed_labels(exported.text_file, LABELS, TEMPLATES, model=exported.card, name="mine")
    expected = classes_of(exported.teacher)
    np.testing.assert_allclose(new.labels.embeddings, expected, atol=1e-5)
    assert (new.labels.bank, new.labels.teacher, new.labels.labels) == ("mine", "large", LABELS)
    assert new.labels.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert new.num_cut_prompts == 3
    data = exported.text_file.read_bytes()
    assert str(Path.cwd()).encode() not in data
    assert str(exported.student.parent).encode() not in data


def test_int8_weights_take_a_quarter_and_agree(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_export, "to_onnx", lambda *_: onnx.load(exported.text_file))  # two seconds less
    report = export_text_onnx(exported.student, tmp_path / "a", teacher=exported.teacher, int8=True)
    assert report.num_bytes < 0.4 * exported.text_file.stat().st_size  # of so narrow a tower much is the vocabulary
    new = embed_labels(tmp_path / "a", LABELS, TEMPLATES, model=exported.card)
    assert (new.labels.embeddings * classes_of(exported.teacher)).sum(axis=1).min() > 0.99
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_tower_that_reads_its_whole_context(tmp_path: Path) -> None:
    """SigLIP's: the last position, no mask, a bias; and a student's own."""
    model = save_siglip_like(tmp_path / "student")
    report = export_text_onnx(tmp_path / "student", tmp_path / "text.onnx")
    card = report.card
    assert (card.takes_shorter, card.teacher, card.logit_bias) == (False, None, -10)
    image_card = ModelCard(
        image_size=48,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        embed_dim=20,
        precision="fp32",
        target=None,
        student_sha256=card.weights_sha256,
        software={},
        agreement={},
    )
    for labels in (LABELS, LABELS[:1]):  # all, of which one fills the context, and one that does not
        new = embed_labels(report.output, labels, TEMPLATES, model=image_card)
        np.testing.assert_allclose(new.labels.embeddings, classes_of(model)[: len(labels)], atol=1e-5)


WITHOUT = ("torch", "open_clip", "regex", "ftfy", "pyarrow", "typer", "pydantic", "jaxtyping", "onnx")


def test_labelling_with_new_labels_needs_no_torch(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\ufeff red  cat\n\nFahrrad\n", encoding="utf-8")
    (tmp_path / "templates.txt").write_text("a photo of a {c}.\n\n{} at night, a photo\n")
    (tmp_path / "image.png").write_bytes(image_bytes(0, 40, 30))
    arguments = [exported.image_file, tmp_path / "image.png", "--text-model", exported.text_file, "--json"]
    arguments += ["--labels", tmp_path / "labels.txt", "--templates", tmp_path / "templates.txt"]
    code = f"import sys\nsys.modules.update(dict.fromkeys({WITHOUT}))\n"
    code += f"from reinforce.deploy.label.command import main\nsys.exit(main({[*map(str, arguments)]}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    line = json.loads(done.stdout)
    assert sorted(line["labels"]) == ["Fahrrad", "red cat"]
    new = read_new_labels(
        exported.text_file, exported.card, tmp_path / "labels.txt", tmp_path / "templates.txt", num_threads=1
    )
    by_hand = embed_labels(exported.text_file, ("red cat", "Fahrrad"), TEMPLATES[:2], model=exported.card)
    np.testing.assert_array_equal(new.labels.embeddings, by_hand.labels.embeddings)


def test_refusals_of_export(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "text.onnx"
    output.write_bytes(b"an earlier one")
    other = save_open_clip(tmp_path / "other", seed=1)
    demo = Path(reinforce.__file__).parent / "demo" / "models" / "demo-a"
    with pytest.raises(ModelError, match=r"is an image tower alone; give its teacher \(large\) by --teacher"):
        export_text_onnx(exported.student, output)
    with pytest.raises(ModelError, match=r"its weights \(\w{12}\) are not those that .*student.json records \(large"):
        export_text_onnx(exported.student, output, teacher=other)
    with pytest.raises(ModelError, match="has a text tower of its own; leave --teacher out"):
        export_text_onnx(tmp_path / "other", output, teacher=other)
    with pytest.raises(ModelError, match="has a tokenizer other than CLIP's"):
        export_text_onnx(demo, output)
    monkeypatch.setattr(text_export, "to_onnx", lambda *_: onnx.load(exported.text_file))  # of another tower
    with pytest.raises(ModelError, match=r"agree to a cosine of -?0\.\d{6} at worst, less than 0.9999; nothing was"):
        export_text_onnx(tmp_path / "other", output)
    assert output.read_bytes() == b"an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "text.onnx"]
    for option in ("--text-int8", f"--teacher={other}"):
        done = CliRunner().invoke(app, ["export", str(exported.student), "--output", str(output), option])
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        assert "goes with --text, the file to write" in done.output
    # Before anything is exported: the image tower's file is not there either.
    model = tmp_path / "model.onnx"
    for text, says in ((model, "the image tower goes there"), (tmp_path / "no/t.onnx", "name a file in a folder")):
        arguments = ["export", str(exported.student), "--output", str(model), "--text", str(text), "--teacher", other]
        done = CliRunner().invoke(app, arguments)
        assert (done.exit_code, done.output.count("\n")) == (2, 1)
        assert says in done.output
        assert not model.exists()


@pytest.mark.parametrize("value", [None, "x", 0.0])
def test_a_text_tower_whose_scale_is_damaged(exported: Exported, value: object) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(exported.text_file).metadata_props}
    card = json.loads(metadata["reinforce.text"]) | {"logit_scale": value}
    with pytest.raises(ModelFileError, match="logit_scale must be a number above 0"):
        TextCard.from_metadata(metadata | {"reinforce.text": json.dumps(card)})


def test_refusals_of_label(exported: Exported, tmp_path: Path) -> None:
    def refused(content: str, templates: str = "{}") -> Any:
        (tmp_path / "labels").write_text(content)
        (tmp_path / "templates").write_text(templates)
        return read_new_labels(
            exported.text_file, exported.card, tmp_path / "labels", tmp_path / "templates", num_threads=1
        )

    with pytest.raises(LabelError, match="'Red CAT' is in it twice"):
        refused("red cat\nRed  CAT\n")
    with pytest.raises(LabelError, match="no label in it"):
        refused("\n \n")
    with pytest.raises(LabelError, match=r"line 2 has no \{\} for the label"):
        refused("cat", "{}\na photo\n")
    with pytest.raises(LabelError, match="no template in it"):
        refused("cat", "\n")
    with pytest.raises(LabelError, match=r"image\.onnx: not a text tower exported by reinforce"):
        embed_labels(exported.image_file, LABELS, TEMPLATES, model=exported.card)
    metadata = open_session(exported.text_file, 1).get_modelmeta().custom_metadata_map
    other = ModelCard(**vars(exported.card) | {"student_sha256": "f" * 64})
    with pytest.raises(ModelFileError, match=r"embeds texts for the student \w{12}, the model is of ffffffffffff; ex"):
        TextCard.from_metadata(metadata).check_same_space(other)
    newer = metadata | {"reinforce.text": metadata["reinforce.text"].replace('"version": 1', '"version": 2')}
    with pytest.raises(ModelFileError, match="of version 2; this software reads version 1"):
        TextCard.from_metadata(newer)
    with pytest.raises(ModelFileError, match="its metadata is damaged"):
        TextCard.from_metadata(metadata | {"reinforce.merges": metadata["reinforce.merges"][:1000]})
