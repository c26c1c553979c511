"""Corpora as an inspection tells of them: sentences, drops, what teachers lack, and a few sentences to read.

Footers of up to 1,024 files of a corpus, all of them if asked for; the first 1,024 rows of up to 8 of them.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reinforce.inspection.corpus_figures import CorpusFigures, SentenceExample, SentenceTeacherFigures
from reinforce.inspection.figures import MOST_STEMS, Distribution, DropExample, DropFigures, Missing, Problem
from reinforce.inspection.footers import check_footer, noted
from reinforce.inspection.gather import note_drops
from reinforce.inspection.listing import CorpusFiles, Listing
from reinforce.inspection.sampling import MOST_FOOTER_SHARDS
from reinforce.inspection.sentences import TRUNCATED
from reinforce.inspection.values import evenly, read_matrix
from reinforce.shards.corpora import Corpus, open_corpus
from reinforce.shards.dataset import SIGNAL_FILE, Dataset, check_keys, read_document
from reinforce.shards.reader import FormatError, ShardFile
from reinforce.shards.schema import (
    CORPUS_FILE,
    SENTENCE_COLUMN,
    SENTENCES_SCHEMA,
    corpus_embeddings_file,
    corpus_embeddings_folder,
    corpus_stem,
    fingerprint,
    sentences_file,
    split_corpus_stem,
)

_NUM_THREADS = 16
_MOST_FILES = 8
_MOST_ROWS = 1024
"""Of each file whose sentences are read."""
_MOST_EXAMPLES = 12
_MOST_CHARACTERS = 300

Footer = dict[str, Any] | None


def corpus_figures(
    dataset: Dataset, listing: Listing, problems: list[Problem], *, is_full: bool
) -> tuple[CorpusFigures, ...]:
    """The figures of each corpus. What is wrong with a file is noted, and the file counts as not there."""
    found = []
    for name, files in listing.corpora.items():
        path = f"corpora/{name}/{CORPUS_FILE}"
        with noted(problems, dataset, path):
            if None not in files.documents:
                raise FormatError(f"is missing, and nothing says how the sentences of corpora/{name} were read")
            corpus = open_corpus(dataset, name)
            if not isinstance(corpus.document.get("content"), dict):
                raise FormatError("says nothing of content")
            found.append(_Reading(corpus, files, problems).figures(is_full=is_full))
    return tuple(found)


@dataclass(slots=True)
class _Totals:
    """Sums over footers."""

    num_files: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    nulls: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    cut: Counter[str] = field(default_factory=Counter)


class _Reading:
    """Reads one corpus: its footers, then the first rows of a few of its files."""

    def __init__(self, corpus: Corpus, files: CorpusFiles, problems: list[Problem]) -> None:
        self._corpus, self._files, self._problems = corpus, files, problems
        self._content = corpus.document["content"]
        self._teachers: dict[str, dict[str, Any]] = {}
        self._drops: defaultdict[str, list[DropExample]] = defaultdict(list)
        self._norm_errors: dict[str, float] = {}

    def figures(self, *, is_full: bool) -> CorpusFigures:
        corpus, names = self._corpus, sorted(self._files.sentences)
        self._check_documents()
        read = evenly(names, len(names) if is_full else MOST_FOOTER_SHARDS)
        totals = self._add_footers(read)
        rows = [(stem, row) for stem in self._sampled(names) for row in self._read_rows(stem)]
        texts = [(stem, row["key"], row["text"]) for stem, row in rows if row["text"] is not None]
        scale = len(names) / totals.num_files if totals.num_files else 1.0
        return CorpusFigures(
            name=corpus.name,
            column=str(self._content.get("column")),
            reading=_reading(self._content),
            num_files=len(names),
            num_footer_files=totals.num_files,
            num_sentences=round(scale * totals.counts["num_rows"]),
            num_kept=round(scale * totals.counts["num_kept"]),
            num_cut=round(scale * totals.counts[TRUNCATED]),
            num_bytes=self._files.num_bytes,
            source_bytes=round(scale * totals.counts["source_bytes"]),
            drops=tuple(
                DropFigures(reason, round(scale * n), tuple(self._drops[reason]))
                for reason, n in totals.drops.most_common()
            ),
            teachers=tuple(self._teacher(name, totals) for name in self._teachers),
            num_sampled=len(texts),
            words=Distribution.of(np.array([len(text.split()) for *_, text in texts], np.float64)),
            examples=tuple(SentenceExample(stem, key, _cut(text)) for stem, key, text in evenly(texts, _MOST_EXAMPLES)),
        )

    def _teacher(self, teacher: str, totals: _Totals) -> SentenceTeacherFigures:
        there = self._files.embeddings.get(teacher, {})
        missing = sorted(self._files.sentences.keys() - there.keys())
        num_read = totals.counts[f"files of {teacher}"]
        bits = (self._teachers[teacher].get("content") or {}).get("mantissa_bits")
        scale = len(there) / num_read if num_read else 1.0
        return SentenceTeacherFigures(
            name=teacher,
            num_files=len(there),
            missing=Missing(len(missing), tuple(corpus_stem(self._corpus.name, n) for n in missing[:MOST_STEMS])),
            num_bytes=sum(there.values()),
            nulls={reason: round(scale * n) for reason, n in sorted(totals.nulls[teacher].items())},
            num_truncated_texts=round(scale * totals.cut[teacher]),
            max_norm_error=self._norm_errors.get(teacher),
            mantissa_bits=bits if isinstance(bits, int) else None,
        )

    def _check_documents(self) -> None:
        """Reads each `signal.json`; notes documents that were edited, and files that nothing explains."""
        corpus, files = self._corpus, self._files
        documents = [(f"corpora/{corpus.name}/{CORPUS_FILE}", corpus.document)]
        for teacher in sorted(filter(None, files.documents)):
            path = f"{corpus_embeddings_folder(corpus.name, teacher)}/{SIGNAL_FILE}"
            with noted(self._problems, corpus.dataset, path):
                document = read_document(corpus.dataset.store, path)
                if document is not None:
                    self._teachers[teacher] = document
                    documents.append((path, document))
        for path, document in documents:
            if fingerprint(document.get("content")) != document.get("fingerprint"):
                self._problems.append(Problem(path, "its fingerprint is not that of its content: it was edited"))
        for teacher, there in sorted(files.embeddings.items()):
            folder = corpus_embeddings_folder(corpus.name, teacher)
            if teacher not in files.documents:
                what = "1 file is" if len(there) == 1 else f"{len(there):,} files are"
                self._problems.append(Problem(folder, f"{what} there, and no {SIGNAL_FILE} says what it is made of"))
                continue
            for name in sorted(there.keys() - files.sentences.keys()):
                # A build commits sentences first, but a listing may have passed them by then.
                if not corpus.dataset.store.exists(sentences_file(corpus_stem(corpus.name, name))):
                    path = corpus_embeddings_file(corpus_stem(corpus.name, name), teacher)
                    self._problems.append(Problem(path, "no sentences: there is no such file of the corpus"))

    def _add_footers(self, names: Sequence[str]) -> _Totals:
        totals = _Totals()
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for spine, of_teachers, problems in pool.map(self._read_footers, names):
                totals.num_files += 1
                self._problems += problems
                if spine is not None:
                    totals.counts.update({name: spine[name] for name in ("num_rows", "num_kept", "source_bytes")})
                    totals.counts[TRUNCATED] += spine["counts"].get(TRUNCATED, 0)
                    totals.drops.update(spine["drops"])
                for teacher, footer in of_teachers.items():
                    totals.counts[f"files of {teacher}"] += 1
                    totals.nulls[teacher].update(footer["nulls"])
                    totals.cut[teacher] += footer.get("num_truncated_texts", 0)
        return totals

    def _read_footers(self, name: str) -> tuple[Footer, dict[str, dict[str, Any]], list[Problem]]:
        """The footers of one file of sentences, each if it says what is expected of it."""
        corpus, problems = self._corpus, list[Problem]()
        stem = corpus_stem(corpus.name, name)
        spine: Footer = None
        of_teachers = {}
        with noted(problems, corpus.dataset, sentences_file(stem)), corpus.open_sentences(stem) as file:
            expected = {"kind": "sentences", "stem": stem, "fingerprint": corpus.document.get("fingerprint")}
            spine = check_footer(file, expected, list(SENTENCES_SCHEMA.names))
        for teacher in self._teachers:
            if name not in self._files.embeddings.get(teacher, {}):
                continue
            path = corpus_embeddings_file(stem, teacher)
            same = {} if spine is None else {"source_sha256": spine["source_sha256"], "num_rows": spine["num_kept"]}
            with noted(problems, corpus.dataset, path), ShardFile(corpus.dataset.store, path) as file:
                expected = {"kind": "sentence_embeddings", "stem": stem, **same}
                expected["fingerprint"] = self._teachers[teacher].get("fingerprint")
                of_teachers[teacher] = check_footer(file, expected, ["key", SENTENCE_COLUMN])
        return spine, of_teachers, problems

    def _has(self, stem: str, teacher: str) -> bool:
        return split_corpus_stem(stem)[1] in self._files.embeddings.get(teacher, {})

    def _sampled(self, names: Sequence[str]) -> list[str]:
        """The stems of the files whose first rows are read: those without a problem."""
        bad = {problem.path for problem in self._problems}
        stems = [corpus_stem(self._corpus.name, name) for name in evenly(names, _MOST_FILES)]
        return [stem for stem in stems if sentences_file(stem) not in bad]

    def _read_rows(self, stem: str) -> list[dict[str, Any]]:
        """The first rows of a file; of its embeddings the norms."""
        corpus = self._corpus
        rows: list[dict[str, Any]] = []
        with noted(self._problems, corpus.dataset, sentences_file(stem)), corpus.open_sentences(stem) as file:
            rows = file.head(list(SENTENCES_SCHEMA.names), _MOST_ROWS).to_pylist()
        note_drops(self._drops, stem, rows)
        kept = [row["key"] for row in rows if row["drop_reason"] is None]
        bad = {problem.path for problem in self._problems}
        for teacher in self._teachers:
            path = corpus_embeddings_file(stem, teacher)
            if self._has(stem, teacher) and path not in bad:
                with noted(self._problems, corpus.dataset, path), ShardFile(corpus.dataset.store, path) as file:
                    self._add_norms(file, teacher, kept)
        return rows

    def _add_norms(self, file: ShardFile, teacher: str, kept: list[str]) -> None:
        check_keys(kept, file.head(["key"], len(kept)).column("key").to_pylist(), file.path)
        matrix = read_matrix(file, SENTENCE_COLUMN, len(kept))
        norms = np.sqrt((matrix * matrix).sum(axis=1))
        errors = np.abs(norms[np.isfinite(norms)] - 1)
        if errors.size:
            self._norm_errors[teacher] = max(float(errors.max()), self._norm_errors.get(teacher, 0.0))


def _reading(content: dict[str, Any]) -> str:
    """What became of long sentences, by `corpus.json`."""
    then, most = "cut" if content.get("too_long") == "truncate" else "dropped", content.get("max_characters")
    return f"longer than {most if isinstance(most, int) else '?'} characters {then}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
