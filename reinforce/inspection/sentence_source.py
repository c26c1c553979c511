"""Sentences against the file they were read from: its bytes, and every record of it read again.

The file is read once for its sha256 and once for its records, as a build reads it. No teacher is asked.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinforce.config import CorpusConfig
from reinforce.inspection.checked_files import local_copy
from reinforce.inspection.faults import FileFaults
from reinforce.inspection.sentences import TRUNCATED, Sentences
from reinforce.sample import Sentence
from reinforce.shards.schema import split_corpus_stem
from reinforce.shards.sentences import read_sentences
from reinforce.shards.source import ShardError
from reinforce.storage import SENTENCES, StorageError, Store, open_store

_NUM_PROBED = 16
"""Files of a corpus that are looked for before anything is read: one of them must be there."""
_HELP = "give --corpus-root {name}=URI if it has moved, or --no-source to leave it out"


@dataclass(frozen=True)
class SentenceSource:
    """Where the files of one corpus are."""

    store: Store

    def paths(self, stem: str) -> Iterator[str]:
        """Which files there are of this stem: one, or several with suffixes of their own."""
        _, name = split_corpus_stem(stem)
        return (f"{name}{suffix}" for suffix in SENTENCES.suffixes if self.store.exists(f"{name}{suffix}"))


def find_sources(
    corpora: Mapping[str, dict[str, Any]], stems: Sequence[str], roots: Mapping[str, str]
) -> dict[str, SentenceSource]:
    """The source of each corpus that has files, below its recorded root, or that of `roots`.

    Raises `StorageError` if one cannot be reached, saying which options help.
    """
    found = {}
    for name, document in corpora.items():
        of_corpus = [stem for stem in stems if split_corpus_stem(stem)[0] == name]
        root = roots.get(name) or document["source_root"]
        advice = _HELP.format(name=name)
        try:
            source = SentenceSource(open_store(root))
            is_there = not of_corpus or any(any(source.paths(stem)) for stem in of_corpus[:_NUM_PROBED])
        except (OSError, ValueError) as error:
            raise StorageError(f"source of corpus {name}: {' '.join(str(error).split())[:200]}; {advice}") from None
        if not is_there:
            raise StorageError(f"source of corpus {name}: no file of it is at {root}; {advice}")
        found[name] = source
    return found


def check_source(
    source: SentenceSource,
    stem: str,
    document: dict[str, Any],
    sentences: Sentences,
    faults: FileFaults,
    spool: Path,
) -> None:
    """Compares a source file with the sentences; `faults` are those of the file. Raises `OSError` if there is none.

    Of several files of one stem it is the one with the recorded sha256, if one has it.
    """
    paths = list(source.paths(stem))
    if not paths:
        raise FileNotFoundError(stem)
    for path in paths:
        with local_copy(source.store, path, spool) as local:
            with local.open("rb") as file:
                is_same = hashlib.file_digest(file, "sha256").hexdigest() == sentences.footer["source_sha256"]
            if not is_same and path != paths[-1]:
                continue
            faults.path = source.store.uri_of(path)
            faults.num_bytes = local.stat().st_size
            if not is_same:
                faults.add("its sha256 is not that of the file the sentences are from: it has changed")
            elif faults.num_bytes != sentences.footer["source_bytes"]:
                recorded = sentences.footer["source_bytes"]
                faults.add(f"has {faults.num_bytes} bytes, in the footer of the sentences they are {recorded}")
            _compare(local, path, document["content"], sentences, faults, is_same=is_same)
        return


def _compare(
    local: Path, path: str, content: dict[str, Any], sentences: Sentences, faults: FileFaults, *, is_same: bool
) -> None:
    options = {name: content[name] for name in ("column", "max_characters", "too_long")}
    config = CorpusConfig.model_validate({"files": "-", **options})
    records = read_sentences(local, SENTENCES.suffix(path), config, limit=content["limit_samples"])
    found: defaultdict[tuple[str, str], list[tuple[int | None, str]]] = defaultdict(list)
    num_records = num_cut = 0
    rows = _rows(sentences)
    try:
        for number, record in enumerate(records):
            num_records += 1
            num_cut += record.is_cut
            row = next(rows, None)
            for kind in () if row is None else _differences(record, row):
                found[kind].append((number, record.key))
    except ShardError as error:
        faults.add(str(error))
        return
    if num_records != sentences.rows.num_rows:
        faults.add(f"has {num_records:,} records, the sentences have {sentences.rows.num_rows:,} rows")
    for (column, what), samples in found.items():
        faults.add_samples(what, samples, column)
    recorded = sentences.footer["counts"].get(TRUNCATED, 0)
    if is_same and num_cut != recorded:
        faults.add(f"has {num_cut} sentences that are cut, in the footer of the sentences it is {recorded}")


def _rows(sentences: Sentences) -> Iterator[tuple[str | None, str | None]]:
    """Text and drop reason of each row; the rows of a row group at a time become Python's."""
    for batch in sentences.rows.select(["text", "drop_reason"]).to_batches():
        yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def _differences(record: Sentence, row: tuple[str | None, str | None]) -> Iterator[tuple[str, str]]:
    text, recorded = row
    reason = record.drop.reason if record.drop else None
    if reason != recorded:
        yield "drop_reason", f"is {reason or 'a sentence'}, in the dataset it is {recorded or 'kept'}"
    elif reason is None and record.text != text:
        yield "text", "is another sentence than in the dataset"
