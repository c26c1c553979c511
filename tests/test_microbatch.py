"""Out of memory on the device: smaller passes instead of a failed shard, and a note of it."""

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reinforce.captioners import load_captioner
from reinforce.config import CaptionerConfig, TeacherConfig
from reinforce.microbatch import MicroBatch
from reinforce.shard_report import ShardReport
from reinforce.teachers import ClipTeacher, load_teacher
from tests import models
from tests.fakes import fake_plan, files_of, run
from tests.tars import pairs, write_tar

CPU = torch.device("cpu")


class Device:
    """Has memory for passes of `most_rows`; notes the rows of every pass tried."""

    def __init__(self, most_rows: int) -> None:
        self.most_rows = most_rows
        self.tried: list[int] = []

    def take(self, num_rows: int) -> None:
        self.tried.append(num_rows)
        if num_rows > self.most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def limit(self, encode: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def encode_what_fits(inputs: torch.Tensor) -> torch.Tensor:
            self.take(len(inputs))
            return encode(inputs)

        return encode_what_fits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return models.save_open_clip(tmp_path_factory.mktemp("microbatch") / "clip")


def load(checkpoint: str, device: Device, *, batch_size: int) -> ClipTeacher:
    """A teacher whose towers run out of memory as `device` does."""
    config = TeacherConfig(model=checkpoint, mantissa_bits=10)
    teacher = load_teacher("clip", config, device=CPU, batch_size=batch_size)
    assert isinstance(teacher, ClipTeacher)
    clip = teacher._clip
    teacher._clip = replace(
        clip, encode_image=device.limit(clip.encode_image), encode_text=device.limit(clip.encode_text)
    )
    return teacher


def test_passes_are_padded_and_halved_for_good() -> None:
    micro_batch, passes, device = MicroBatch(5), [], Device(2)

    def forward(rows: list[int]) -> list[int]:
        passes.append(rows)
        device.take(len(rows))
        return [10 * row for row in rows]

    assert micro_batch.run(range(7), forward) == [0, 10, 20, 30, 40, 50, 60]
    assert passes == [[0, 1, 2, 3, 4], [0, 1], [2, 3], [4, 5], [6, 6]]
    assert (micro_batch.size, micro_batch.initial) == (2, 5)
    passes.clear()
    assert micro_batch.run([9, 4, 7], forward, at_most=1) == [90, 40, 70]
    assert micro_batch.run([9, 4, 7], forward, at_most=4) == [90, 40, 70]
    assert passes == [[9], [4], [7], [9, 4], [7, 7]]


def test_rows_that_were_done_are_not_done_again() -> None:
    micro_batch, device, done = MicroBatch(4), Device(4), []

    def forward(rows: list[int]) -> list[int]:
        device.take(len(rows))
        device.most_rows = 1
        done.extend(rows)
        return rows

    assert micro_batch.run(range(8), forward) == list(range(8))
    assert done == list(range(8))
    assert device.tried == [4, 4, 2, 1, 1, 1, 1]


def test_other_errors_are_not_a_matter_of_rows() -> None:
    micro_batch = MicroBatch(4)

    def forward(rows: list[int]) -> list[int]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        micro_batch.run(range(4), forward)
    assert micro_batch.size == 4


def test_what_a_failed_pass_held_is_free_before_the_next() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def forward(rows: list[int]) -> list[int]:
        assert [reference() for reference in held] == [None] * len(held)
        activations = torch.zeros(len(rows), 8)
        held.append(weakref.ref(activations))
        try:
            Device(1).take(len(rows))
        except torch.OutOfMemoryError as error:
            kept = error  # a cycle: this frame holds the error, whose traceback holds this frame
            raise kept from None
        return rows

    assert MicroBatch(4).run(range(4), forward) == [0, 1, 2, 3]
    assert len(held) == 6


def test_a_teacher_says_the_same_in_smaller_passes(checkpoint: str) -> None:
    views = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
    texts = [f"a photo of {i} cats" for i in range(9)]
    whole = load(checkpoint, Device(8), batch_size=8)
    device = Device(3)
    halved = load(checkpoint, device, batch_size=8)
    images = halved.embed_images(views)
    assert device.tried == [8, 4, 2, 2, 2, 2, 2]
    assert ((images * whole.embed_images(views)).sum(axis=1) >= 0.9999).all()
    device.tried.clear()
    assert ((halved.embed_texts(texts)[0] * whole.embed_texts(texts)[0]).sum(axis=1) >= 0.9999).all()
    assert device.tried == [2] * 5, "the smaller size is kept, for texts too"
    assert (halved.micro_batch, whole.micro_batch) == (2, 8)
    assert halved.describe() == whole.describe()


def test_passes_of_longer_texts_have_fewer_rows(checkpoint: str) -> None:
    """Of 8 rows for a length of 8 tokens, 5 for the whole context of 12."""
    device = Device(8)
    load(checkpoint, device, batch_size=8).embed_texts(["a cat"] * 9 + ["cat " * 20])
    assert device.tried == [8, 8, 5]


def test_a_row_that_does_not_fit_alone_is_an_error(checkpoint: str) -> None:
    device = Device(0)
    teacher = load(checkpoint, device, batch_size=4)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        teacher.embed_texts(["a cat", "a dog"])
    assert device.tried == [4, 2, 1]


def events_of(output: Path) -> list[dict[str, Any]]:
    lines = [line for part in output.glob("runs/*/*.jsonl") for line in part.read_text().splitlines()]
    events = [json.loads(line) for line in lines]
    return [event for event in events if event["event"] != "end_of_part"]


def test_a_build_goes_on_and_records_it(tmp_path: Path, checkpoint: str) -> None:
    """Memory gets short after the first of two shards."""
    for stem in "ab":
        write_tar(tmp_path / "in" / f"{stem}.tar", pairs(6))
    model = CaptionerConfig(kind="open_clip", model=models.save_coca(tmp_path / "coca"), max_new_tokens=5)

    def build(output: Path, device: Device, rows_of_second: int) -> None:
        captioner = load_captioner("coca", model, device=CPU, batch_size=4)
        plan = fake_plan(teachers=[load(checkpoint, device, batch_size=4)], captioners=[captioner])
        assert run(plan, tmp_path / "in" / "a.tar", output, source_root=str(tmp_path / "in")).failed == {}
        device.most_rows = rows_of_second
        assert run(plan, tmp_path / "in", output).failed == {}

    whole, halved = tmp_path / "whole", tmp_path / "halved"
    build(whole, Device(4), 4)
    build(halved, Device(4), 2)
    for output, micro_batches in ((whole, {}), (halved, {"clip": 2})):
        events = events_of(output)
        assert sorted(event["event"] for event in events) == ["end", "end", "shard", "shard", "start", "start"]
        recorded = {event["stem"]: event["micro_batches"] for event in events if event["event"] == "shard"}
        assert recorded == {"a": {}, "b": micro_batches}
        assert micro_batches in [event["micro_batches"] for event in events if event["event"] == "end"]
    files, files_halved = files_of(whole), files_of(halved)
    assert files.keys() == files_halved.keys()
    differing = {name for name in files if files[name] != files_halved[name]}
    assert all(name.startswith("embeddings/clip/") and name.endswith("/b.parquet") for name in differing)


def test_a_captioner_that_shares_a_name_is_recorded_with_it(tmp_path: Path, checkpoint: str) -> None:
    model = CaptionerConfig(kind="open_clip", model=models.save_coca(tmp_path / "coca"), max_new_tokens=5)
    captioner: Any = load_captioner("clip", model, device=CPU, batch_size=4)
    captioner._model.visual.register_forward_pre_hook(lambda _module, args: Device(1).take(len(args[0])))
    plan = fake_plan(teachers=[load(checkpoint, Device(2), batch_size=4)], captioners=[captioner])
    write_tar(tmp_path / "in" / "s.tar", pairs(3))
    assert run(plan, tmp_path / "in", tmp_path / "out").failed == {}
    assert events_of(tmp_path / "out")[-1]["micro_batches"] == {"clip": 1}


def test_a_sum_of_shards_keeps_the_smallest() -> None:
    total = ShardReport("")
    for sizes in ({"a": 16}, {}, {"a": 32, "b": 8}):
        total.add(ShardReport("s", micro_batches=dict[str, int](sizes)))
    assert total.to_json()["micro_batches"] == {"a": 16, "b": 8}
