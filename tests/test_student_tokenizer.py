"""A student's tokenizer: open_clip's ids, cuts known in one pass, small enough to travel to a worker."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import reinforce
from reinforce.config import ConfigError, StudentModelConfig, TextTowerConfig
from reinforce.student.models import build_student
from reinforce.student.tokenizer import StudentTokenizer
from tests.models import word_tokenizer

DEMO_TOKENIZER = str(Path(reinforce.__file__).parent / "demo" / "models" / "demo-a")
TEXTS = ["a red circle", "two cats and a boat!", "the sky " * 40, "", "A photo of a dog."]


def with_tokenizer(tokenizer: str) -> StudentModelConfig:
    text = TextTowerConfig(context_length=12, width=32, heads=2, layers=1)
    return StudentModelConfig(backbone="test_efficientnet", image_size=64, text=text, tokenizer=tokenizer)


def low_end_tokenizer(folder: Path, **special: str) -> str:
    """A tokenizer whose end token has a low id, as BERT's and T5's: argmax would read a text at its longest word."""
    tokenizer = word_tokenizer(12)
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tokenizers(tmp_path: Path) -> dict[str, StudentTokenizer]:
    end_pads = low_end_tokenizer(tmp_path / "end pads", pad_token="<eos>")
    return {
        "CLIP's": StudentTokenizer(12),
        "demo-a": StudentTokenizer(12, DEMO_TOKENIZER),
        "low end": StudentTokenizer(12, low_end_tokenizer(tmp_path / "low end")),
        "end pads": StudentTokenizer(12, end_pads),
        "canonical": StudentTokenizer(12, None, {"clean": "canonicalize"}),
    }


@pytest.mark.parametrize("name", ["CLIP's", "demo-a", "low end", "end pads", "canonical"])
def test_tokens_and_cuts_in_one_pass_are_those_of_two(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizers(tmp_path)[name]
    texts = [" ".join(["red"] * num_words) for num_words in range(20)] + TEXTS + ["! ! !" * 30]
    ids, is_cut = tokenizer.tokenize(texts)
    assert (ids.shape, ids.dtype) == ((len(texts), 12), torch.int64)
    assert torch.equal(ids, tokenizer(texts))
    # A text was cut if and only if much more room gives it another beginning.
    roomy = StudentTokenizer(400, tokenizer.folder, tokenizer.options)(texts)[:, :12]
    np.testing.assert_array_equal(is_cut, (roomy != ids).any(dim=1).numpy())
    np.testing.assert_array_equal(tokenizer.truncated(texts), is_cut)
    assert is_cut[:20].tolist() == [False] * 11 + [True] * 9  # ten words fit between begin and end
    assert tokenizer.tokenize([])[0].shape == (0, 12)


def test_a_tokenizer_travels_to_a_worker(tmp_path: Path) -> None:
    for tokenizer in tokenizers(tmp_path).values():
        expected = tokenizer(TEXTS)
        pickled = pickle.dumps(tokenizer)
        assert len(pickled) < 500
        assert torch.equal(pickle.loads(pickled)(TEXTS), expected)


def test_a_tokenizer_that_a_text_tower_cannot_use_is_refused(tmp_path: Path) -> None:
    endless = word_tokenizer(12)
    endless.backend_tokenizer.post_processor = None
    endless.save_pretrained(tmp_path / "endless")
    unpadded = word_tokenizer(12)
    unpadded.pad_token = None
    unpadded.save_pretrained(tmp_path / "unpadded")
    word_tokenizer(12).save_pretrained(tmp_path / "left")
    left = tmp_path / "left" / "tokenizer_config.json"
    left.write_text(json.dumps(json.loads(left.read_text()) | {"padding_side": "left"}))
    (tmp_path / "empty").mkdir()
    for name, message in {
        "endless": "ends its texts with no end token",
        "unpadded": "is no tokenizer that pads and cuts",
        "left": "pads at the left",
        "empty": "is no tokenizer that pads and cuts",
    }.items():
        with pytest.raises(ConfigError, match=f"^student.model.tokenizer: {name} {message}"):
            build_student(with_tokenizer(str(tmp_path / name)), seed=0)


def test_a_text_is_read_at_its_end(tmp_path: Path) -> None:
    built = build_student(with_tokenizer(low_end_tokenizer(tmp_path / "tokenizer")), seed=0)
    assert built.tokenizer
    # "two" has the highest id of all: read there, in a causal tower, nothing that follows would matter.
    one, other = built.model.encode_text(built.tokenizer(["two cat", "two dog"]))
    assert not torch.allclose(one, other)


def test_a_saved_tokenizer_is_the_same_through_transformers(tmp_path: Path) -> None:
    StudentTokenizer(12, DEMO_TOKENIZER).save(tmp_path)
    before, after = (AutoTokenizer.from_pretrained(path) for path in (DEMO_TOKENIZER, tmp_path))
    assert before(TEXTS).input_ids == after(TEXTS).input_ids
    assert str(tmp_path) not in "".join(path.read_text() for path in tmp_path.iterdir())
