"""The stream of sentences: every one once a pass, the same after a break, and nothing to do with the images."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reinforce.config import ConfigError, LossConfig
from reinforce.shards.schema import corpus_embeddings_file, sentences_file
from reinforce.student.batch import Batch
from reinforce.student.dime_fm_loss import DimeFmLoss
from reinforce.student.groups import ReadError
from reinforce.student.losses import StudentOutputs
from reinforce.student.plan import ReadPlan
from reinforce.student.sentences import SentenceStream
from tests.corpora import random_corpus, write_corpus, write_sentence_embeddings
from tests.students import build_dataset, facts, plan_of, read

SIZES = {"0": 11, "sub/1": 6, "2": 9}
TEACHERS = {"large": 12, "small": 8}
DROPPED = {"0": {3, 4}, "2": {0}}
NULLS = {"sub/1": {2}, "2": {8}}
"""By file: the records that are no sentence, and the kept ones of which `small` says nothing, as records."""


def embedding(name: str, record: int, dim: int) -> np.ndarray:
    """A direction that says whose it is, exact in half floats."""
    row = np.zeros(dim)
    row[:3] = list(SIZES).index(name) + 1, record + 1, dim
    return row


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, of which `numbers` has records that were dropped and nulls, and embeddings that can be read back."""
    folder = tmp_path_factory.mktemp("sentences")
    built = build_dataset(folder, views={"count": 1})
    texts = {
        name: ["" if record in DROPPED.get(name, ()) else f"{name} {record}" for record in range(size)]
        for name, size in SIZES.items()
    }
    embeddings: dict[str, dict[str, np.ndarray]] = {}
    for teacher, dim in TEACHERS.items():
        embeddings[teacher] = {}
        for name, of_file in texts.items():
            rows = np.stack([embedding(name, record, dim) for record, text in enumerate(of_file) if text])
            kept = [record for record, text in enumerate(of_file) if text]
            if teacher == "small":
                rows[[record in NULLS.get(name, ()) for record in kept]] = np.nan
            embeddings[teacher][name] = rows
    write_corpus(built, "numbers", texts, embeddings)
    random_corpus(built, "other", {"0": 8}, TEACHERS)
    return built


USABLE = {
    (name, record)
    for name, size in SIZES.items()
    for record in range(size)
    if record not in DROPPED.get(name, set()) | NULLS.get(name, set())
}


def plan(dataset: Path, *, seed: int = 0, corpora: tuple[str, ...] | None = ("numbers",), **options: Any) -> ReadPlan:
    """A plan with sentences, of which `batch_size`, `open_files` and `sentences_select` are theirs."""
    names = {"batch_size": "batch_size", "open_files": "open_files", "sentences_select": "select"}
    sentences: dict[str, Any] = {"corpora": corpora, "batch_size": 5, "open_files": 2}
    sentences |= {field: options.pop(option) for option, field in names.items() if option in options}
    return plan_of(dataset, seed=seed, reads_captions=False, reads_sentences=True, sentences=sentences, **options)


def stream(plan: ReadPlan, **options: Any) -> SentenceStream:
    assert plan.sentences is not None
    return SentenceStream(plan.sentences, **options)


NO_IMAGES = Batch([], [], torch.empty(0), {}, {}, {})


def batches(stream: SentenceStream, num_batches: int) -> list[Batch]:
    return list(stream.beside(iter([NO_IMAGES] * num_batches)))


def named(batch: Batch) -> list[tuple[str, int]]:
    """Which sentences they are; every teacher must say the same."""
    found = []
    for teacher, rows in batch.sentences.items():
        assert set(rows[:, 2].tolist()) == {TEACHERS[teacher]}
        found.append([(list(SIZES)[int(row[0]) - 1], int(row[1]) - 1) for row in rows])
    assert all(names == found[0] for names in found)
    return found[0]


def test_every_usable_sentence_comes_once_a_pass(dataset: Path) -> None:
    """Three files of two visits at a time: after six visits, which are two passes, all have come twice."""
    reading = stream(plan(dataset))
    found = batches(reading, 2 * len(USABLE) // 5)
    seen = Counter(name for batch in found for name in named(batch))
    late = Counter(dict.fromkeys(USABLE, 2)) - seen
    assert (sum(seen.values()), late.total()) == (40, 2 * len(USABLE) - 40)
    assert set(seen) <= USABLE
    assert max(seen.values()) == 2
    # Two passes of three files: each null was met twice.
    assert sum((batch.counts for batch in found), Counter[str]()) == {"null_sentence": 4}
    assert [named(batch) for batch in found] != [sorted(named(batch)) for batch in found]
    names = [[name for name, _ in named(batch)] for batch in found]
    assert any(len(set(of_batch)) > 1 for of_batch in names)  # files are shuffled together


@pytest.mark.parametrize("open_files", [1, 2, 5])
def test_no_sentence_comes_again_before_its_pass_is_over(dataset: Path, open_files: int) -> None:
    """Also where more files may be open than there are."""
    found = batches(stream(plan(dataset, batch_size=1, open_files=open_files)), 3 * len(USABLE))
    names = [name for batch in found for name in named(batch)]
    for start in range(0, len(names), len(USABLE)):
        assert set(names[start : start + len(USABLE)]) == USABLE


@pytest.mark.parametrize("open_files", [1, 2, 5])
def test_the_stream_goes_on_from_any_position(dataset: Path, open_files: int) -> None:
    whole = stream(plan(dataset, open_files=open_files))
    positions, found = [], []
    for batch in whole.beside(iter([NO_IMAGES] * 12)):
        positions.append(whole.position)
        found.append(named(batch))
    for done in (1, 4, 7):
        again = stream(plan(dataset, open_files=open_files))
        again.position = positions[done - 1]
        assert [named(batch) for batch in batches(again, 12 - done)] == found[done:]


def test_a_batch_may_be_larger_than_the_corpus(dataset: Path) -> None:
    """Which is said: the count is of what is kept, two nulls among them."""
    planned = plan(dataset, batch_size=3 * len(USABLE), open_files=3)
    (batch,) = batches(stream(planned), 1)
    assert Counter(named(batch)) == dict.fromkeys(USABLE, 3)
    assert planned.sentences is not None
    assert planned.sentences.description() == (
        "sentences: 23 of numbers, without images, 63 a step, each 2.7 times on average"
    )
    whole = plan(dataset, batch_size=23).sentences
    assert whole is not None
    assert whole.description() == "sentences: 23 of numbers, without images, 23 a step"


def test_processes_share_the_files(dataset: Path) -> None:
    """The first groups of two processes, of two visits and of one, are one pass, whoever has fewer sentences."""
    seen: Counter[tuple[str, int]] = Counter()
    for rank in range(2):
        reading = stream(plan(dataset, batch_size=2, open_files=3), rank=rank, world_size=2)
        of_first_group = [
            named(batch) for batch in reading.beside(iter([NO_IMAGES] * 40)) if reading.position.group == 0
        ]
        assert {len(names) for names in of_first_group} == {1}
        seen.update(name for names in of_first_group for name in names)
    assert seen == dict.fromkeys(USABLE, 1)
    with pytest.raises(ConfigError, match=r"sentences.batch_size: 5 does not divide by 2 processes"):
        stream(plan(dataset), world_size=2)


def image_batches(plan: ReadPlan, num_batches: int) -> Iterator[Batch]:
    return islice(read(plan, batch_size=6), num_batches)


def test_unpaired_means_unpaired(dataset: Path, tmp_path: Path) -> None:
    """Other sentences, or another order of them, leave the images as they are to the bit, and the other way round."""
    options: dict[str, Any] = {"corpora": ("other",), "batch_size": 8, "open_files": 1, "teachers": ["small"]}
    shuffled = tmp_path / "shuffled"
    shutil.copytree(dataset, shuffled)
    shutil.rmtree(shuffled / "corpora/other")
    generator = np.random.default_rng(0)
    rows = {teacher: generator.normal(size=(8, dim)) for teacher, dim in TEACHERS.items()}
    unit = {teacher: values / np.linalg.norm(values, axis=1, keepdims=True) for teacher, values in rows.items()}
    order = [3, 1, 0, 7, 6, 2, 5, 4]
    texts = [f"sentence {number} of 0" for number in order]
    write_corpus(shuffled, "other", {"0": texts}, {name: {"0": values[order]} for name, values in unit.items()})
    here, there = (plan(folder, **options) for folder in (dataset, shuffled))
    one, two = (list(stream(p).beside(image_batches(p, 5))) for p in (here, there))
    assert [facts(batch) for batch in one] == [facts(batch) for batch in image_batches(here, 5)]
    assert [facts(batch) for batch in one] == [facts(batch) for batch in two]
    # The batch is the corpus, in another order, which is nothing to the loss.
    loss, image = DimeFmLoss(LossConfig(kind="dime_fm"), {"small": 8}, 8), torch.eye(8)[:6]
    outputs = StudentOutputs(image, {}, torch.tensor(1.0))
    for batch, other in zip(one, two, strict=True):
        assert not torch.equal(batch.sentences["small"], other.sentences["small"])
        assert torch.equal(sort(batch.sentences["small"]), sort(other.sentences["small"]))
        assert float(loss(outputs, batch)["loss"]) == pytest.approx(float(loss(outputs, other)["loss"]), rel=1e-5)
    assert not torch.equal(one[0].sentences["small"], one[1].sentences["small"])  # each pass has an order of its own
    # Other images: another order, another size of shuffle; the sentences stay.
    reordered = replace(here, seed=7, data=here.data.model_copy(update={"open_shards": 3}))
    three = list(stream(here).beside(image_batches(reordered, 5)))
    assert [facts(batch) for batch in one] != [facts(batch) for batch in three]
    assert all(
        torch.equal(batch.sentences["small"], other.sentences["small"]) for batch, other in zip(one, three, strict=True)
    )
    # Another seed of the run is another order of both.
    (four,) = stream(plan(dataset, seed=1, **options)).beside(image_batches(here, 1))
    assert not torch.equal(four.sentences["small"], one[0].sentences["small"])


def sort(rows: torch.Tensor) -> torch.Tensor:
    return torch.tensor(sorted(rows.tolist()))


def test_a_selection_narrows_the_sentences(dataset: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stem = "corpora/numbers/0"
    pq.write_table(pa.table({"stem": [stem, stem, stem], "key": ["1", "11", "4"]}), tmp_path / "some.parquet")
    narrowed = plan(dataset, sentences_select=str(tmp_path / "some.parquet"))
    (batch,) = batches(stream(narrowed), 1)
    # Record 4 was dropped, and is no sentence.
    assert set(named(batch)) == {("0", 0), ("0", 10)}
    # Five rows of two sentences a pass are three passes.
    assert batch.counts["not_selected_sentence"] == 3 * 7
    assert narrowed.sentences is not None
    assert narrowed.sentences.count() == 2
    pq.write_table(pa.table({"stem": ["a"], "key": ["a-001"]}), tmp_path / "images.parquet")
    with pytest.raises(ConfigError, match=r"sentences.select: .* names no sentence of these corpora.*of 'a'"):
        plan(dataset, sentences_select=str(tmp_path / "images.parquet"))


def test_what_is_missing_is_said_before_anything_is_read(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sentences.corpora: the dataset has no 'news'; it has numbers, other"):
        plan(dataset, corpora=("news",))
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (copy / corpus_embeddings_file("corpora/numbers/2", "large")).unlink()
    with pytest.raises(ConfigError, match="1 of 3 files of sentences are not finished; run the build again, or"):
        plan(copy)
    skipped = plan(copy, missing="skip").sentences
    assert skipped is not None
    assert (len(skipped.stems), skipped.num_skipped_files) == (2, 1)
    assert len(plan(copy, teachers=["small"]).sentences.stems) == 3  # type: ignore[union-attr]
    for name in ("0", "sub/1"):
        (copy / corpus_embeddings_file(f"corpora/numbers/{name}", "large")).unlink()
    with pytest.raises(ConfigError, match=r"3 of 3 files of sentences are not finished; run the build again$"):
        plan(copy, missing="skip")
    signal = copy / "corpora/other/embeddings/small/signal.json"
    document = json.loads(signal.read_text())
    document["content"]["weights_sha256"] = "1" * 64
    signal.write_text(json.dumps(document))
    with pytest.raises(
        ConfigError, match="corpus other is of other weights of small than its embeddings of the images"
    ):
        plan(copy, corpora=("other",))
    signal.unlink()
    with pytest.raises(ConfigError, match="teacher small has not embedded corpus other"):
        plan(copy, corpora=None)
    shutil.rmtree(copy / "corpora")
    with pytest.raises(ConfigError, match=r"has no corpus, and loss.kind dime_fm reads sentences; build.corpora makes"):
        plan(copy, corpora=None)


def test_files_that_do_not_belong_together(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    planned = plan(copy, open_files=3)
    path = copy / corpus_embeddings_file("corpora/numbers/2", "small")
    whole = path.read_bytes()

    def refused(error: type[Exception], match: str, planned: ReadPlan = planned) -> None:
        with pytest.raises(error, match=match):
            batches(stream(planned), 1)

    shutil.copy(copy / corpus_embeddings_file("corpora/numbers/0", "small"), path)
    refused(ReadError, r"^corpora/numbers/2: .*its stem is corpora/numbers/0, .*--set student.data.damaged=skip$")
    texts = [f"2 {record}" if record else "" for record in range(9)]
    keys = [str(record + 1) for record in range(1, 9)]
    signal = json.loads(path.with_name("signal.json").read_text())
    for changed, others, match in (
        ([*keys[1:], keys[0]], texts, "row 0 is '3', in the spine it is '2'"),
        (keys, [*texts[:-1], "2 changed"], "its source_sha256 is"),
    ):
        path.unlink()
        write_sentence_embeddings(copy, signal, "corpora/numbers/2", changed, np.ones((8, 8)), others)
        refused(ReadError, match)
    path.write_bytes(whole[:100] + b"damaged" + whole[107:])
    refused(ReadError, "numbers/2.*damaged")
    lenient = plan(copy, open_files=3, damaged="skip", missing="skip")
    (batch,) = batches(stream(lenient), 1)
    assert batch.counts["damaged_sentences"] == 1
    path.write_bytes(whole)
    (copy / sentences_file("corpora/numbers/0")).unlink()
    refused(ReadError, "^corpora/numbers/0: .*student.data.missing=skip$")
    (batch,) = batches(stream(lenient), 1)
    assert batch.counts["missing_sentences"] == 1
    refused(ReadError, "sentence [0-9]+: its embedding is null", plan(dataset, unusable="error"))
    shutil.rmtree(copy / "corpora/numbers/sentences")
    refused(ReadError, r"not one usable sentence in \d+ visits to files of them .*missing_sentences", lenient)
