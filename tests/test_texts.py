"""The texts of a shard: every row whole and in its place, each text once, passes full and of one length."""

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import pytest

from reinforce import texts as texts_module
from reinforce.sample import Embeddings
from reinforce.shards.schema import round_mantissa
from reinforce.teachers import FakeTeacher, TokenizedText
from reinforce.texts import ShardTexts, TextRow


class NoTimes:
    def measure(self, stage: str) -> nullcontext[None]:
        return nullcontext()


class PassCountingTeacher(FakeTeacher):
    """Remembers its passes."""

    def __init__(self) -> None:
        super().__init__("t")
        self.passes: list[tuple[int, int]] = []

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
        self.passes.append((texts[0].length, len(texts)))
        return super().embed_tokens(texts)


def rows_of(num_rows: int, num_distinct: int) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Rows with 0 to 3 originals and 0 to 2 synthetic captions, of 1 to 60 characters."""
    rng = random.Random(3)
    known = [f"{index} " * rng.randrange(1, 20) for index in range(num_distinct)]
    captions = {
        source: [rng.choices(known, k=rng.randrange(0, most + 1)) for _ in range(num_rows)]
        for source, most in (("original", 3), ("captioner", 2))
    }
    return [f"{row:04d}" for row in range(num_rows)], captions


def embed(teacher: FakeTeacher, keys: list[str], captions: dict[str, list[list[str]]], step: int) -> list[TextRow]:
    tower = ShardTexts(teacher, NoTimes())
    rows: list[TextRow] = []
    for start in range(0, len(keys), step):
        part = slice(start, start + step)
        rows += tower.add(keys[part], {source: lists[part] for source, lists in captions.items()})
    return rows + tower.finish()


@pytest.mark.parametrize("step", [1, 5, 64])
def test_every_row_has_its_own_texts_in_its_order(step: int) -> None:
    keys, captions = rows_of(200, num_distinct=150)
    teacher = PassCountingTeacher()
    rows = embed(teacher, keys, captions, step)
    assert [row.key for row in rows] == keys
    for index, row in enumerate(rows):
        for source, lists in captions.items():
            assert len(row.texts[source]) == len(lists[index])
            for text, caption in zip(row.texts[source], lists[index], strict=True):
                expected = round_mantissa(teacher.embed_texts([caption])[0], 7)[0]
                np.testing.assert_array_equal(text.embedding, expected)


def test_each_text_is_embedded_once_in_full_passes_of_one_length() -> None:
    keys, captions = rows_of(200, num_distinct=150)
    teacher = PassCountingTeacher()
    embed(teacher, keys, captions, 16)
    distinct = {text for lists in captions.values() for texts in lists for text in texts}
    lengths = Counter(tokens.length for tokens in teacher.tokenize(sorted(distinct)))
    assert sum(size for _, size in teacher.passes) == len(distinct)
    for length, count in lengths.items():
        sizes = [size for of, size in teacher.passes if of == length]
        full, rest = divmod(count, teacher.rows_of_pass(length))
        assert sizes == [teacher.rows_of_pass(length)] * full + [rest] * (rest > 0)


def test_rows_never_wait_for_more_than_so_many_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MAX_WAITING_ROWS", 10)
    tower = ShardTexts(PassCountingTeacher(), NoTimes())
    # The first row's text has a length of its own: no pass of it ever fills up.
    given = tower.add(["first"], {"original": [["x" * 50]]})
    for index in range(30):
        given += tower.add([str(index)], {"original": [["same"]]})
        assert 1 + index + 1 - len(given) <= 10
    assert [row.key for row in given + tower.finish()] == ["first", *map(str, range(30))]


def test_forgotten_texts_are_embedded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "MAX_KNOWN_TEXTS", 4)
    keys, captions = rows_of(60, num_distinct=30)
    remembered, forgetful = embed(FakeTeacher("t"), keys, captions, 4), embed(PassCountingTeacher(), keys, captions, 4)
    for one, other in zip(remembered, forgetful, strict=True):
        for source in captions:
            for text, same in zip(one.texts[source], other.texts[source], strict=True):
                np.testing.assert_array_equal(text.embedding, same.embedding)
