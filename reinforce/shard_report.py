"""What one shard gave, in figures: how every sample of it, every dropped one and every null is accounted for."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from reinforce.sample import NullReason
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import Signal, corpus_embeddings_file, sentences_file, spine_file
from reinforce.storage import Store


@dataclass(slots=True)
class ShardReport:
    """What one shard gave: samples seen and kept, what was dropped or null by reason, the work and the files."""

    stem: str
    num_samples: int = 0
    num_kept: int = 0
    num_views: int = 0
    num_captions: int = 0
    num_sentences: int = 0
    """Of a file of sentences, which has no samples."""
    num_kept_sentences: int = 0
    num_truncated_sentences: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    micro_batches: dict[str, int] = field(default_factory=dict)
    """Of the models that had to halve theirs."""
    num_files: int = 0
    num_bytes: int = 0

    def add(self, other: "ShardReport") -> None:
        """Adds another shard's figures to these."""
        for figure in fields(self):
            value = getattr(other, figure.name)
            if isinstance(value, Counter):
                getattr(self, figure.name).update(value)
            elif isinstance(value, dict):
                smallest = getattr(self, figure.name)
                smallest.update({name: min(size, smallest.get(name, size)) for name, size in value.items()})
            elif figure.name != "stem":
                setattr(self, figure.name, getattr(self, figure.name) + value)

    def lacks_modality(self, name: str) -> bool:
        """Whether no kept sample has an image of this modality."""
        return 0 < self.num_kept == self.nulls[null_name(Signal("modality", name), NullReason.NO_MODALITY)]

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data."""
        values = {figure.name: getattr(self, figure.name) for figure in fields(self)}
        return {name: dict(+value) if isinstance(value, Counter) else value for name, value in values.items()}


def null_name(signal: Signal, reason: str) -> str:
    """How a report counts a null: of a modality with its folder, since each lacks other samples."""
    return f"{reason} in {signal.folder}" if signal.kind == "modality" else reason


def stored_report(output: Store, stem: str, signals: Iterable[Signal]) -> ShardReport:
    """What the footers of a complete shard's files say of it: its samples, drops and nulls, and no work of ours."""
    report = ShardReport(stem)
    with ShardFile(output, spine_file(stem)) as spine:
        report.num_samples, report.num_kept = spine.footer["num_rows"], spine.footer["num_kept"]
        report.drops.update(spine.footer["drops"])
        report.counts.update(spine.footer["counts"])
    for signal in signals:
        with ShardFile(output, signal.file(stem)) as file:
            nulls = file.footer["nulls"]
            report.nulls.update({null_name(signal, reason): number for reason, number in nulls.items()})
    return report


def stored_sentences_report(output: Store, stem: str, teachers: Iterable[str]) -> ShardReport:
    """The same of a file of sentences."""
    report = ShardReport(stem)
    with ShardFile(output, sentences_file(stem)) as file:
        report.num_sentences, report.num_kept_sentences = file.footer["num_rows"], file.footer["num_kept"]
        report.num_truncated_sentences = file.footer["counts"]["truncated_sentences"]
        report.drops.update(file.footer["drops"])
    for teacher in teachers:
        with ShardFile(output, corpus_embeddings_file(stem, teacher)) as file:
            report.nulls.update(file.footer["nulls"])
    return report
