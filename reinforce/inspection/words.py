"""Figures in words, for the screen and the page: counts, bytes, and the facts a person should know, a line each."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from reinforce.formatting import format_count
from reinforce.inspection.figures import BankFigures, Figures, Missing, RunFigures, SampleName, SignalFigures

_MOST_CHARACTERS = 60
_MOST_FAILURES = 3


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def printable(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Text of unknown origin on one line, without control characters, cut at `most` characters."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def label(folder: str) -> str:
    """A signal's folder, shorter: the teacher's name says that these are embeddings."""
    return folder.removeprefix("embeddings/")


count = format_count


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def about(figures: Figures, number: int) -> str:
    """A sum over footers, with a tilde if it is scaled up."""
    return f"{'~' * (figures.is_estimated and number > 0)}{number:,}"


def samples_line(figures: Figures) -> str:
    num_dropped = figures.num_samples - figures.num_kept
    samples, kept, dropped = (about(figures, n) for n in (figures.num_samples, figures.num_kept, num_dropped))
    noun = "sample" if figures.num_samples == 1 else "samples"
    return f"{count(figures.num_shards, 'shard')}, {samples} {noun}, {kept} kept, {dropped} dropped"


def complete_line(figures: Figures) -> str:
    num_complete, all_of = figures.num_shards - figures.incomplete.count, count(len(figures.signals), "signal")
    if not figures.signals:
        return "no signals yet"
    which = f"{num_complete:,} of {figures.num_shards:,}" if figures.incomplete.count else "all"
    return f"{which} shards have all {all_of}" if len(figures.signals) > 1 else f"{which} shards have the signal"


def size_line(figures: Figures) -> str:
    size, tilde = format_bytes(figures.total_bytes), "~" * figures.is_estimated
    if source_bytes := figures.all_source_bytes:
        share = f"{tilde}{100 * figures.total_bytes / source_bytes:.3g} %"
        size += f", {share} of the {tilde}{format_bytes(source_bytes)} of source"
    if figures.bytes_per_kept is not None:
        size += f", {tilde}{format_bytes(figures.bytes_per_kept)} a kept sample"
    return size


def run_counts(run: RunFigures) -> str:
    """What a run went through: samples, sentences, or both."""
    sentences = [count(run.num_sentences, "sentence")] if run.num_sentences else []
    samples = [count(run.num_samples, "sample")] if run.num_samples or not sentences else []
    return ", ".join(samples + sentences)


def sampled_line(figures: Figures) -> str:
    where = f"{len(figures.sampled_stems):,} of {count(figures.num_shards, 'shard')}"
    values = f"captions, norms and cosines from {count(figures.num_sampled_samples, 'sample')} of {where}"
    if not figures.is_estimated:
        return values
    return f"~: scaled up from the footers of {figures.num_footer_shards:,} shards (--full reads all)\n{values}"


def bank_line(bank: BankFigures) -> str:
    """What a bank of labels has, and by whom."""
    size = f"{count(bank.num_labels, 'label')} x {count(bank.num_templates, 'template')}"
    notes = [f"{size} by {', '.join(bank.teachers) or 'no teacher yet'}"]
    notes += [f"not by {', '.join(bank.missing_teachers)}"] if bank.missing_teachers else []
    notes += [f"{count(bank.num_duplicates, 'repeated label')} left out"] if bank.num_duplicates else []
    cut = bank.num_truncated_texts
    return "; ".join([*notes, *(f"{count(cut[name], 'prompt')} longer than {name} reads" for name in cut)])


def reading(document: dict[str, Any]) -> str:
    """How a modality is found and brought to 8 bits, by its `signal.json`."""
    content = document.get("content", {})
    suffix, value_range = content.get("suffix"), content.get("range")
    bounds = " to ".join(f"{value:g}" for value in value_range) if isinstance(value_range, list) else value_range
    return printable(f".{suffix}, range {bounds}")


def modality_line(figures: Figures, signal: SignalFigures) -> str:
    """What a modality is and how many samples have it."""
    num_rows = signal.num_values + sum(signal.nulls.values())
    name = signal.folder.removeprefix("modalities/")
    return f"{name}: {signal.reading}; {about(figures, signal.num_values)} of {count(num_rows, 'sample')}"


def facts(figures: Figures) -> list[tuple[str, str]]:
    """What is missing, failed, dropped, null, cut or left out: lines of a name and words."""
    left_out = ", ".join(f"{about(figures, number)} {what}" for what, number in figures.left_out.items())
    found = [*_missing(figures), *_failed(figures), *_dropped(figures), *_null(figures), *_cut(figures)]
    return [*found, ("left out", left_out)] if left_out else found


def _missing(figures: Figures) -> Iterator[tuple[str, str]]:
    """Signals that lack the same shards are one line."""
    if figures.missing_shards and figures.missing_shards.count:
        yield "missing", f"samples: {_stems(figures.missing_shards)} of the source"
    alike = defaultdict(list)
    for signal in figures.signals:
        if signal.missing.count:
            alike[signal.missing].append(label(signal.folder))
    for missing, names in alike.items():
        yield "missing", f"{', '.join(names)}: {_stems(missing)}"


def _failed(figures: Figures) -> Iterator[tuple[str, str]]:
    for stem, error in list(figures.failures.items())[:_MOST_FAILURES]:
        yield "failed", f"{printable(stem)}: {printable(error, 200)}"
    if figures.num_failures > _MOST_FAILURES:
        yield "failed", f"and {figures.num_failures - _MOST_FAILURES:,} more, see --json"


def _dropped(figures: Figures) -> Iterator[tuple[str, str]]:
    for drop in figures.drops:
        examples = _names(SampleName(example.stem, example.key) for example in drop.examples)
        yield "dropped", f"{about(figures, drop.count)} {drop.reason}{examples}"


def _null(figures: Figures) -> Iterator[tuple[str, str]]:
    """Signals with as many nulls for one reason are one line: captions that do not exist are so for all teachers.

    Those of modalities are so only where the samples are the same.
    """
    alike = defaultdict(list)
    for signal in figures.signals:
        for reason, number in signal.nulls.items():
            examples = _names(figures.null_examples.get(signal.folder, {}).get(reason, ()))
            apart = examples if signal.folder.startswith("modalities/") else ""
            alike[reason, number, apart].append((label(signal.folder), examples))
    for (reason, number, _), signals in alike.items():
        where = ", ".join(name for name, _ in signals)
        yield "null", f"{about(figures, number)} {reason} in {where}{signals[0][1]}"


def _cut(figures: Figures) -> Iterator[tuple[str, str]]:
    alike = defaultdict(list)
    for signal in figures.signals:
        if signal.num_truncated_texts:
            alike[signal.num_truncated_texts, signal.num_values].append(label(signal.folder))
    for (number, num_texts), names in alike.items():
        share = f" ({percent(number / num_texts)})" if num_texts else ""
        yield "cut", f"{about(figures, number)} texts{share} longer than the context of {', '.join(names)}"


def _names(samples: Iterable[SampleName]) -> str:
    names = [printable(f"{sample.stem}/{sample.key}", 40) for sample in samples]
    return f": {', '.join(names)}" if names else ""


def _stems(missing: Missing) -> str:
    names = ", ".join(printable(stem, 40) for stem in missing.examples)
    return f"{count(missing.count, 'shard')} ({names}{', ...' if missing.count > len(missing.examples) else ''})"
