"""The digests that files carry of themselves: by their definition, and wherever a bit flips."""

import hashlib
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from reinforce.progress import RunLog
from reinforce.shards.digests import document_fault, document_text, file_digests, has_end_of_part, lines_fault
from reinforce.shards.schema import CAPTIONS_SCHEMA
from reinforce.shards.writer import ShardFileWriter, captions_batch
from reinforce.storage import open_store


def test_a_key_may_look_like_a_digest(tmp_path: Path) -> None:
    """The statistics of the Parquet footer repeat keys."""
    key = '"file_sha256":"' + "0" * 64 + '"'
    writer = ShardFileWriter(tmp_path / "spool", CAPTIONS_SCHEMA)
    writer.append(captions_batch([key], [["a caption"]]))
    assert writer.commit(open_store(str(tmp_path / "out"), create=True), "x.parquet", {"format_version": 1})
    data = (tmp_path / "out/x.parquet").read_bytes()
    assert data.count(key.encode()) > 1, "the data page and the statistics"
    computed, recorded = file_digests(io.BytesIO(data)) or ("", "-")
    metadata = pq.read_metadata(tmp_path / "out/x.parquet")
    assert json.loads(metadata.metadata[b"reinforce"])["file_sha256"] == recorded
    assert metadata.row_group(0).column(0).statistics.max == key
    place = data.rindex(recorded.encode())
    assert computed == recorded == hashlib.sha256(data[:place] + b"0" * 64 + data[place + 64 :]).hexdigest()


def test_every_flipped_bit_of_a_document_is_found() -> None:
    data = document_text({"name": "Bäumchen", "values": [1.5, 2], "none": None, "empty": {}}).encode()
    assert document_fault(data, json.loads(data)) is None
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        try:
            document = json.loads(damaged)
        except ValueError:
            continue
        # Another name of the digest's own field is a field that nobody knows.
        assert document_fault(bytes(damaged), document) or set(document) - {"name", "values", "none", "empty", "sha256"}


@pytest.mark.parametrize("text", ['{"a":1}\n', '{\n  "a": 1\n}', '{\n  "a": NaN\n}\n', '{\n  "a": "\\ud800"\n}\n'])
def test_a_document_of_another_spelling_is_found(text: str) -> None:
    assert document_fault(text.encode(), json.loads(text))


def test_a_document_without_a_digest_is_none_the_worse() -> None:
    text = '{\n  "a": 1\n}\n'
    assert document_fault(text.encode(), json.loads(text)) is None


def test_parts_of_a_run_end_with_their_digest(tmp_path: Path) -> None:
    log = RunLog(open_store(str(tmp_path), create=True))
    for number in range(2):
        log.event("start", number=number, why='{"event": "end_of_part"')
        log.flush()
    parts = sorted(path.read_bytes() for path in tmp_path.rglob("*.jsonl"))
    assert len(parts) == 2
    for data in parts:
        *lines, last = data.splitlines(keepends=True)
        assert json.loads(last) == {"event": "end_of_part", "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}
        assert has_end_of_part(data)
        assert lines_fault(data) is None
        assert lines_fault(data.replace(b"number", b"nunber"))
        assert not has_end_of_part(b"".join(lines))
