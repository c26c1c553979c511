"""The reader against the source itself: every row recomputed, every order repeated, every fault told."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import reinforce
from reinforce.config import ConfigError
from reinforce.decode import decode
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import round_mantissa
from reinforce.student.batch import Batch
from reinforce.student.choices import Visit, caption_index, permutation, view_index, visits
from reinforce.student.groups import ReadError
from reinforce.student.reader import Placement, ReinforcedDataset
from reinforce.student.shard import open_shard
from reinforce.teachers import FakeTeacher
from tests.fakes import fake_teachers
from tests.s3_server import FaultyProxy, S3Server, use_test_credentials
from tests.students import (
    CORRUPT_KEYS,
    NUM_USABLE,
    SHARD_SIZES,
    UNCAPTIONED_KEYS,
    ByteTokenizer,
    build_dataset,
    facts,
    plan_of,
    read,
    text_of,
    write_source,
)
from tests.tars import image_bytes, write_tar


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("reader"))


@pytest.fixture
def own_dataset(tmp_path: Path) -> Path:
    """A dataset for a test that damages it."""
    return build_dataset(tmp_path)


def take(batches: Any, num_batches: int) -> list[Batch]:
    return list(itertools.islice(batches, num_batches))


def teacher(name: str) -> FakeTeacher:
    return next(t for t in fake_teachers() if t.name == name)  # type: ignore[return-value]


def rounded(embeddings: np.ndarray) -> np.ndarray:
    return round_mantissa(embeddings, 7)


# Truth: a batch is what the teachers said of exactly these pixels and these words.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("large", {}),
        ("small", {}),
        ("large", {"views_per_decode": 3, "views_placement": "together"}),
        ("small", {"views_per_decode": 2}),
    ],
)
def test_every_embedding_is_that_of_the_row_s_own_view_and_captions(dataset: Path, name: str, options: Any) -> None:
    model = teacher(name)
    rows = 0
    for batch in read(plan_of(dataset, **options), batch_size=6, image_size=model.image_size, epochs=6):
        pixels = batch.images.permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(batch.teacher_images[name].numpy(), rounded(model.embed_images(pixels)))
        for role in ("original", "synthetic"):
            texts = [text_of(row) for row in batch.texts[role]]
            expected = rounded(model.embed_texts(texts)[0])
            np.testing.assert_array_equal(batch.teacher_texts[role][name].numpy(), expected)
        assert all(
            batch_text.endswith(key)
            for batch_text, key in zip([text_of(row) for row in batch.texts["original"]], batch.keys, strict=True)
        )
        rows += len(batch)
    assert rows == 6 * NUM_USABLE


def test_a_student_of_another_size_sees_the_same_view(dataset: Path) -> None:
    small, large = (next(iter(read(plan_of(dataset), image_size=size))) for size in (12, 24))
    assert small.keys == large.keys
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 2)
    # Nearest-neighbour operations move by a pixel at another size; the pictures are the same.
    assert (shrunk - small.images.float()).abs().mean() < 12


# Which rows, when.


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_holds_every_usable_sample_once(dataset: Path, world_size: int) -> None:
    keys: Counter[str] = Counter()
    for rank in range(world_size):
        placement = Placement(rank=rank, world_size=world_size)
        for batch in read(plan_of(dataset), epochs=1, placement=placement):
            keys.update(batch.keys)
    expected = {f"{stem}-{number:03d}" for stem, size in SHARD_SIZES.items() for number in range(size)}
    assert keys == Counter(expected - CORRUPT_KEYS - UNCAPTIONED_KEYS)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_read_the_same_samples(dataset: Path, workers: int) -> None:
    plan = plan_of(dataset, workers=workers)
    found = Counter(fact for batch in read(plan, epochs=2).loader() for fact in facts(batch))
    assert found == Counter(fact for batch in read(plan_of(dataset), epochs=2) for fact in facts(batch))


def test_what_a_visit_reads_depends_on_seed_epoch_and_shard_alone() -> None:
    stems = ["a", "b", "c", "d", "e"]
    alone = list(visits(stems, 7, worker=0, num_workers=1, passes=4))
    dealt = [list(visits(stems, 7, worker=worker, num_workers=3, passes=4)) for worker in range(3)]
    assert [visit for group in itertools.zip_longest(*dealt) for visit in group if visit] == alone
    assert Counter(visit.stem for visit in alone) == Counter(stems * 4)
    assert alone != list(visits(stems, 8, worker=0, num_workers=1, passes=4))
    assert list(visits(stems, 7, worker=1, num_workers=3, start=2, passes=4)) == dealt[1][2:]


def test_k_epochs_see_each_view_once() -> None:
    for stem in ("a", "b"):
        walked = [view_index(3, stem, place, 5) for place in range(15)]
        assert [sorted(walked[start : start + 5]) for start in (0, 5, 10)] == [[1, 2, 3, 4, 5]] * 3
        captions = [caption_index(3, stem, place, "original", 2) for place in range(6)]
        assert [sorted(captions[start : start + 2]) for start in (0, 2, 4)] == [[0, 1]] * 3
    assert len({tuple(view_index(3, stem, place, 5) for place in range(5)) for stem in "abcdefgh"}) > 4
    assert view_index(3, "a", 9, 0) == 0


def test_permutations_are_pinned() -> None:
    assert permutation(8, 0, "view", 0, "00000").tolist() == [4, 2, 5, 3, 1, 0, 7, 6]
    assert sorted(permutation(100, 1, "rows")) == list(range(100))


def test_views_and_captions_change_over_the_epochs(dataset: Path) -> None:
    seen: dict[str, set[bytes]] = {}
    captions: dict[str, set[str]] = {}
    for batch in read(plan_of(dataset), epochs=6):
        for row, key in enumerate(batch.keys):
            seen.setdefault(key, set()).add(batch.teacher_images["large"][row].numpy().tobytes())
            captions.setdefault(key, set()).add(text_of(batch.texts["original"][row]))
    assert {len(views) for views in seen.values()} == {3}
    assert {len(texts) for key, texts in captions.items() if int(key[-3:]) % 2} == {2}
    assert {len(texts) for key, texts in captions.items() if int(key[-3:]) % 2 == 0} == {1}


def test_rows_are_shuffled_across_the_open_shards(dataset: Path) -> None:
    batch = next(iter(read(plan_of(dataset, open_shards=3), batch_size=16)))
    assert len(set(batch.stems)) == 3
    assert batch.keys != sorted(batch.keys)


@pytest.mark.parametrize(
    ("workers", "options", "stops"),
    [
        (0, {}, (1, 4, 7, 14)),
        (2, {}, (4, 7, 14)),
        (0, {"views_per_decode": 3}, (1, 2, 3, 7, 14)),
        (1, {"views_per_decode": 3}, (2, 9)),
        (2, {"views_per_decode": 2}, (3, 6, 9)),
        (0, {"views_per_decode": 3, "views_placement": "together"}, (1, 2, 7)),
        (1, {"views_per_decode": 2, "views_placement": "together"}, (5,)),
        (2, {"views_per_decode": 2, "views_placement": "together"}, (5,)),
    ],
)
def test_a_stream_goes_on_exactly_where_it_stopped(
    dataset: Path, workers: int, options: Any, stops: tuple[int, ...]
) -> None:
    plan = plan_of(dataset, workers=workers, **options)
    whole = take(read(plan, batch_size=6).loader(), 18)
    for stop in stops:
        positions = {batch.position.worker: batch.position for batch in whole[:stop]}
        next_worker = (whole[stop - 1].position.worker + 1) % max(1, workers)
        placement = Placement(resume=tuple(positions[w] for w in sorted(positions)), next_worker=next_worker)
        random_state = torch.get_rng_state()
        rest = take(read(plan, batch_size=6, placement=placement).loader(), 18 - stop)
        assert [facts(batch) for batch in rest] == [facts(batch) for batch in whole[stop:]]
        # A run's dropout goes on where it stopped, too.
        assert torch.equal(torch.get_rng_state(), random_state)


def test_the_same_seed_gives_the_same_stream_and_another_one_another(dataset: Path) -> None:
    first, second, other = (take(read(plan_of(dataset, seed=seed)), 8) for seed in (0, 0, 1))
    assert [facts(batch) for batch in first] == [facts(batch) for batch in second]
    assert [batch.keys for batch in first] != [batch.keys for batch in other]


def test_unequal_shards_never_leave_a_process_without_a_batch(dataset: Path) -> None:
    for rank in range(4):  # more processes than shards
        batches = take(read(plan_of(dataset), placement=Placement(rank=rank, world_size=4)), 20)
        assert [len(batch) for batch in batches] == [4] * 20


# Several views of an image that is decoded once.


@pytest.mark.parametrize("placement", ["apart", "together"])
def test_as_many_epochs_as_views_see_each_once_whatever_a_visit_takes(dataset: Path, placement: str) -> None:
    """The same samples as with one view a visit, in another order."""
    plan = plan_of(dataset, views_per_decode=3, views_placement=placement)
    found = Counter(fact for batch in read(plan, batch_size=6, epochs=6) for fact in facts(batch))
    assert found == Counter(fact for batch in read(plan_of(dataset), epochs=6) for fact in facts(batch))
    with pytest.raises(ConfigError, match="epochs: 4 is no multiple of views_per_decode 3"):
        read(plan, batch_size=6, epochs=4)


def test_images_come_back_in_the_next_batches_and_are_decoded_a_few_at_a_time(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_decoded = 0

    def counting(data: bytes, max_pixels: int) -> Any:
        nonlocal num_decoded
        num_decoded += 1
        return decode(data, max_pixels)

    monkeypatch.setattr("reinforce.student.shard.decode", counting)
    stream = iter(read(plan_of(dataset, views_per_decode=3), batch_size=6))
    after = []
    batches = []
    for batch in itertools.islice(stream, 9):
        batches.append(batch)
        after.append(num_decoded)
    assert after == [6, 8, 10, 12, 14, 16, 18, 20, 22]
    for start in (0, 3, 6):
        assert len(set(batches[start].keys)) == 6
        assert batches[start].keys == batches[start + 1].keys == batches[start + 2].keys
        views = {tuple(map(bytes, batch.teacher_images["large"].numpy())) for batch in batches[start : start + 3]}
        assert len(views) == 3
    assert set(batches[0].keys).isdisjoint(batches[3].keys)
    assert batches[0].images_of is None


def test_views_together_are_in_one_batch_and_known_as_those_of_one_image(dataset: Path) -> None:
    plan = plan_of(dataset, views_per_decode=3, views_placement="together")
    for batch in take(read(plan, batch_size=6), 6):
        assert set(Counter(batch.keys).values()) == {3}
        assert batch.images_of is not None
        same = [[one == other for other in batch.keys] for one in batch.keys]
        assert (batch.images_of[:, None] == batch.images_of).tolist() == same
    with pytest.raises(ConfigError, match=r"student.batch_size: 7 in a process does not divide by .* 3"):
        read(plan, batch_size=7)


def test_what_is_left_out_counts_samples_not_images(own_dataset: Path) -> None:
    """A row with a null in one of a visit's views is left out of all, and so is one that does not decode."""
    path = own_dataset / "embeddings/large/image/a.parquet"
    table = pq.read_table(path)
    cells = table.column("view_002").combine_chunks()
    nulled = pa.array([None, *cells.to_pylist()[1:]], cells.type)
    table = table.set_column(table.column_names.index("view_002"), table.field("view_002"), nulled)
    pq.write_table(table.replace_schema_metadata(pq.read_metadata(path).metadata), path, write_page_checksum=True)
    counts: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    for batch in read(plan_of(own_dataset, views_per_decode=3), epochs=3):
        counts.update(batch.counts)
        keys.update(batch.keys)
    assert counts == {"no_original_caption": 6, "null_embedding": 3}
    assert "a-000" not in keys
    assert set(keys.values()) == {3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views_per_decode": 4}, "views_per_decode: 4 wanted, there are 3 views; lower it"),
        ({"views_per_decode": 3, "views": 2}, "views_per_decode: 3 wanted, there are 2 views"),
        ({"views_per_decode": 2, "views": 0}, "views_per_decode: 2 wanted, there are 0 views"),
        ({"views_per_decode": 2, "views": 1, "uses_teachers": False}, "lower it, or raise student.data.views"),
    ],
)
def test_more_views_than_there_are_are_refused(dataset: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(dataset, **options)
    assert plan_of(dataset, views_per_decode=8, views=9, uses_teachers=False).num_views == 9


def test_a_batch_says_where_the_reader_s_time_went(dataset: Path) -> None:
    for batch in take(read(plan_of(dataset)), 3):
        assert (
            {"read", "decode", "render", "batch"}
            <= batch.reader_s.keys()
            <= {"open", "read", "decode", "render", "batch"}
        )
        assert all(0 < seconds < 60 for seconds in batch.reader_s.values())


# What is read.


def test_only_the_columns_in_use_are_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns: list[str] = []
    original = ShardFile.read

    def spy(self: ShardFile, names: list[str] | None = None) -> pa.Table:
        assert names is not None
        columns.extend(name for name in names if name.startswith(("view_0", "caption_0")))
        return original(self, names)

    monkeypatch.setattr(ShardFile, "read", spy)
    plan = plan_of(dataset, captioners=[])
    for epoch in range(2):
        open_shard(plan, reinforce.open_dataset(plan.dataset_uri), Visit(epoch, "a"), dataset.parent / "source/a.tar")
    views = [name for name in columns if name.startswith("view")]
    assert len(views) == 4  # one view of each of two teachers, in each of two epochs
    assert views[0] == views[1] != views[2] == views[3]
    # The first caption where it was chosen; both where it was the second, which some samples do not have.
    assert Counter(columns)["caption_000"] == 4
    assert Counter(columns)["caption_001"] == 2


def test_the_plain_loss_reads_no_embedding(dataset: Path) -> None:
    plan = plan_of(dataset, uses_teachers=False, views=9)
    batch = next(iter(read(plan)))
    assert batch.teacher_images == {}
    assert batch.teacher_texts == {"original": {}, "synthetic": {}}
    assert plan.num_views == 9  # any number of views can be drawn
    assert plan.fingerprints.keys() == {"captions/fake"}


def test_a_selection_narrows_what_is_read(dataset: Path, tmp_path: Path) -> None:
    wanted = [("a", "a-000"), ("folder/b", "folder/b-005"), ("folder/b", "folder/b-006")]
    pq.write_table(pa.table({"stem": [s for s, _ in wanted], "key": [k for _, k in wanted]}), tmp_path / "s.parquet")
    plan = plan_of(dataset, select=str(tmp_path / "s.parquet"))
    assert plan.count_samples() == 3
    keys = [key for batch in read(plan, epochs=1) for key in batch.keys]
    assert sorted(keys) == ["a-000", "folder/b-005", "folder/b-006"]


def test_counts_say_what_was_left_out(dataset: Path) -> None:
    counts: Counter[str] = Counter()
    for batch in read(plan_of(dataset), epochs=1):
        counts.update(batch.counts)
    assert counts == {"no_original_caption": 2}
    assert plan_of(dataset).count_samples() == sum(SHARD_SIZES.values()) - len(CORRUPT_KEYS)


def test_cut_captions_are_counted(dataset: Path) -> None:
    stream = ReinforcedDataset(plan_of(dataset), ByteTokenizer(length=4), batch_size=4, image_size=16)
    assert next(iter(stream)).counts["truncated_captions"] == 8


# What can be wrong.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ["larger"]}, "teachers: the dataset has no 'larger'; it has large, small"),
        ({"captioners": ["coca"]}, "captioners: the dataset has no 'coca'; it has fake"),
        ({"views": 4}, "views: 4 wanted, the dataset's teachers have seen 3"),
        ({"original_captions": False, "captioners": []}, "no captions are read"),
    ],
)
def test_a_recipe_that_does_not_fit_the_dataset_is_refused(dataset: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(dataset, **options)


def test_a_missing_signal_file_is_an_error_or_a_skipped_shard(own_dataset: Path) -> None:
    (own_dataset / "embeddings/small/image/c.parquet").unlink()
    with pytest.raises(ConfigError, match=r"1 of 3 shards are not finished \(embeddings/small/image lacks 1\)"):
        plan_of(own_dataset)
    plan = plan_of(own_dataset, missing="skip")
    assert plan.num_skipped_shards == 1
    assert {stem for batch in read(plan, epochs=1) for stem in batch.stems} == {"a", "folder/b"}
    assert len(plan_of(own_dataset, teachers=["large"]).stems) == 3


def test_signals_of_another_source_are_refused(dataset: Path, tmp_path: Path) -> None:
    other = write_source(tmp_path / "other", offset=50)
    with pytest.raises(ReadError, match=r"is not the one the signals were made from .* Give --root"):
        list(read(plan_of(dataset, root=str(other)), epochs=1))
    with pytest.raises(
        ReadError, match=r"not one usable sample in 6 visits to shards \(the run has 3\): image_mismatch"
    ):
        list(read(plan_of(dataset, root=str(other), damaged="skip"), epochs=9))


def test_a_sample_that_is_not_in_the_tar_is_told(dataset: Path, tmp_path: Path) -> None:
    other = write_source(tmp_path / "other")
    write_tar(other / "a.tar", [("else.png", image_bytes(0))])
    with pytest.raises(ReadError, match=r"shard a: sample a-00.: its image is not in the tar"):
        list(read(plan_of(dataset, root=str(other)), epochs=1))


@pytest.mark.parametrize("scale", [1, 2])
def test_resized_images_are_read_where_that_is_allowed(dataset: Path, tmp_path: Path, scale: int) -> None:
    def members(stem: str, size: int, offset: int) -> Iterator[tuple[str, bytes]]:
        for number in range(size):
            index = offset + number
            yield f"{stem}-{number:03d}.png", image_bytes(index, (40 + index % 3) * 2, 30 * scale)

    offset = 0
    for stem, size in SHARD_SIZES.items():
        write_tar(tmp_path / f"{stem}.tar", members(stem, size, offset))
        offset += size
    plan = plan_of(dataset, root=str(tmp_path), verify_images=False)
    if scale == 2:
        assert sum(len(batch) for batch in read(plan, epochs=1)) == NUM_USABLE
    else:
        with pytest.raises(ReadError, match="its views were drawn for"):
            list(read(plan, epochs=1))


def damage(path: Path, how: str) -> None:
    """Flips a bit in the last page of the keys, which every visit reads, or cuts the file in half."""
    data = bytearray(path.read_bytes())
    keys = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data[keys.data_page_offset + keys.total_compressed_size - 4] ^= 1
    path.write_bytes(data if how == "flipped" else data[: len(data) // 2])


@pytest.mark.parametrize("how", ["flipped", "cut"])
@pytest.mark.parametrize("file", ["samples", "embeddings/large/image", "embeddings/small/text/fake", "captions/fake"])
def test_a_damaged_file_is_an_error_or_a_skipped_shard(own_dataset: Path, file: str, how: str) -> None:
    damage(own_dataset / file / "folder/b.parquet", how)
    with pytest.raises((ReadError, ConfigError), match=r"folder/b"):
        list(read(plan_of(own_dataset), epochs=2))
    counts: Counter[str] = Counter()
    stems = set()
    for batch in read(plan_of(own_dataset, damaged="skip"), epochs=2):
        counts.update(batch.counts)
        stems |= set(batch.stems)
    assert stems == {"a", "c"}
    assert counts["damaged_shard"] == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("embeddings/large/image/a.parquet", "embeddings/large/image/c.parquet"),
        ("embeddings/large/text/original/a.parquet", "embeddings/small/text/original/a.parquet"),
        ("embeddings/large/text/original/a.parquet", "embeddings/large/text/fake/a.parquet"),
    ],
)
def test_swapped_files_are_noticed(own_dataset: Path, first: str, second: str) -> None:
    one, other = own_dataset / first, own_dataset / second
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)
    with pytest.raises(ReadError, match="another file's"):
        list(read(plan_of(own_dataset), epochs=1))


def test_rows_in_another_order_are_noticed(own_dataset: Path) -> None:
    path = own_dataset / "embeddings/large/image/a.parquet"
    table = pq.read_table(path)
    swapped = table.take([1, 0, *range(2, len(table))])
    pq.write_table(swapped.replace_schema_metadata(pq.read_metadata(path).metadata), path, write_page_checksum=True)
    with pytest.raises(ReadError, match=r"row 0 is 'a-001', in the spine it is 'a-000'"):
        list(read(plan_of(own_dataset), epochs=1))


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_tar_that_is_gone_is_told_or_counted(own_dataset: Path, policy: str) -> None:
    (own_dataset.parent / "source/c.tar").unlink()
    stream = read(plan_of(own_dataset, missing=policy), epochs=1)
    if policy == "error":
        with pytest.raises(ReadError, match=r"shard c: .*no such file; to go on without it: --set .*missing=skip"):
            list(stream)
    else:
        batches = list(stream)
        assert sum((batch.counts for batch in batches), Counter())["missing_shard"] == 1
        assert {stem for batch in batches for stem in batch.stems} == {"a", "folder/b"}


def test_a_worker_s_error_is_one_line(own_dataset: Path) -> None:
    (own_dataset.parent / "source/c.tar").unlink()
    with pytest.raises(ReadError) as caught:
        list(read(plan_of(own_dataset, workers=1), epochs=1).loader())
    assert str(caught.value).startswith("shard c: ")
    assert "\n" not in str(caught.value)


def test_a_sample_that_cannot_be_used_is_an_error_on_request(dataset: Path) -> None:
    with pytest.raises(ReadError, match=r"no_original_caption; to go on without it: --set student.data.unusable=skip$"):
        list(read(plan_of(dataset, unusable="error"), epochs=1))


def test_nothing_usable_is_told_at_once(dataset: Path, tmp_path: Path) -> None:
    keys = sorted(UNCAPTIONED_KEYS)
    stems = [key.rpartition("-")[0] for key in keys]
    pq.write_table(pa.table({"stem": stems, "key": keys}), tmp_path / "s.parquet")
    plan = plan_of(dataset, select=str(tmp_path / "s.parquet"))
    with pytest.raises(
        ReadError, match=r"not one usable sample in 4 visits to shards \(the run has 2\): .*no_original_caption 4"
    ):
        next(iter(read(plan)))


def test_a_shard_that_keeps_no_sample_is_no_fault(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    write_tar(source / "empty.tar", [("bad.png", b"no image"), ("bad.json", b"{}")])
    plan = plan_of(build_dataset(tmp_path, source))
    batches = list(read(plan, epochs=1))
    assert sum(map(len, batches)) == NUM_USABLE
    assert sum((batch.counts for batch in batches), Counter()) == {"no_original_caption": 2}


def test_a_relative_root_is_where_it_says(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset.parent)
    plan = plan_of(dataset, root="source", workers=1)
    monkeypatch.chdir("/")
    assert sum(len(batch) for batch in read(plan, epochs=1).loader()) == NUM_USABLE


# From a bucket.


@pytest.fixture
def bucket_uris(
    own_dataset: Path, server: S3Server, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str, FaultyProxy, Any]:
    use_test_credentials(monkeypatch)
    server.make_bucket("training")
    client = server.client()
    for path in own_dataset.parent.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "training", str(path.relative_to(own_dataset.parent)))
    query = f"?endpoint_url={proxy.endpoint}"
    return f"s3://training/reinforced{query}", f"s3://training/source{query}", proxy, client


def test_a_bucket_gives_the_same_batches(dataset: Path, bucket_uris: tuple[str, str, FaultyProxy, Any]) -> None:
    uri, source, _, _ = bucket_uris
    plan = plan_of(Path("x"), root=source) if False else _plan_at(uri, root=source)
    remote = [facts(batch) for batch in read(plan, epochs=2)]
    assert remote == [facts(batch) for batch in read(plan_of(dataset), epochs=2)]


def test_worker_processes_read_from_a_bucket(bucket_uris: tuple[str, str, FaultyProxy, Any]) -> None:
    uri, source, _, _ = bucket_uris
    batches = list(read(_plan_at(uri, root=source, workers=1), epochs=1).loader())
    assert sum(map(len, batches)) == NUM_USABLE


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_tar_that_vanishes_from_a_bucket(bucket_uris: tuple[str, str, FaultyProxy, Any], policy: str) -> None:
    uri, source, _, client = bucket_uris
    stream = iter(read(_plan_at(uri, root=source, missing=policy, open_shards=1), epochs=9))
    counts = next(stream).counts
    for stem in SHARD_SIZES:
        if stem != "a":
            client.delete_object(Bucket="training", Key=f"source/{stem}.tar")
    if policy == "error":
        with pytest.raises(ReadError, match="to go on without it"):
            list(stream)
    else:
        for batch in stream:
            counts.update(batch.counts)
        assert counts["missing_shard"] > 0


def _plan_at(uri: str, **options: Any) -> Any:
    from reinforce.config import DataConfig
    from reinforce.student.plan import plan_reading

    root = options.pop("root")
    data = DataConfig.model_validate({"workers": 0, "open_shards": 2} | options)
    return plan_reading(uri, data, root=root)
