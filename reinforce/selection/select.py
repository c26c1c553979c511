"""`reinforce select`: of the kept samples of a dataset those that meet the criteria, and why the others do not.

Reads the keys of every spine, and of the signals only the columns that a criterion looks at. Memory: the
keys, some tens of bytes a sample, and the columns of one shard.
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from reinforce.config import ConfigError
from reinforce.selection.candidates import Candidates
from reinforce.selection.classes import label_samples
from reinforce.selection.criteria import Criteria, Reason, num_of_share
from reinforce.selection.duplicates import leave_out_duplicates
from reinforce.selection.file import write_selection
from reinforce.selection.membership import Other, add_by_name, leave_out_by_name
from reinforce.selection.outcome import Outcome, outcome_of
from reinforce.selection.scores import leave_out_by_score, leave_out_the_rest, score_samples
from reinforce.selection.signals import SignalRows, choose_teachers, leave_out_unfinished, needed_signals, text_signals
from reinforce.shards.banks import Bank
from reinforce.shards.dataset import Dataset
from reinforce.shards.schema import FORMAT_VERSION, Signal


def select_samples(dataset: Dataset, output_uri: str, criteria: Criteria, *, bank: Bank | None = None) -> Outcome:
    """Writes the samples that meet all criteria, in the dataset's order, replacing the file.

    `bank` gives every sample a label, and `Criteria.with_bank` says what is asked then. Raises `ConfigError` if nothing
    is asked or nothing is kept, if a teacher or a signal that is needed is not there, or if another selection is of
    another dataset; `FormatError` for a damaged file.
    """
    criteria = criteria.with_bank() if bank is not None else criteria
    if criteria == Criteria(teachers=criteria.teachers, missing=criteria.missing) and bank is None:
        raise ConfigError("select: nothing is asked; give --split, --min-score, --keep-top, --dedup, --within, ...")
    if criteria.keep_confident is not None and bank is None:
        raise ConfigError("--keep-confident: needs labels; give --bank or --labels")
    needs_signals = criteria.score_source is not None or criteria.dedup is not None or bank is not None
    teachers = choose_teachers(dataset, criteria.teachers) if needs_signals or criteria.teachers else []
    needed = needed_signals(dataset, criteria, teachers, bank.teacher if bank else None)
    candidates = Candidates.of(dataset)
    if not len(candidates):
        raise ConfigError(f"{dataset.store.uri}: holds no kept sample; build it first")
    others = leave_out_by_name(candidates, criteria)
    leave_out_unfinished(dataset, candidates, needed, criteria.missing)
    _leave_out_by_signals(dataset, candidates, criteria, teachers, bank)
    num_added, added = add_by_name(candidates, criteria)
    others += added
    outcome = outcome_of(candidates, criteria, output_uri, num_added=num_added, others=others)
    if not outcome.num_kept:
        left_out = ", ".join(f"{left.count:,} {left.asked}" for left in outcome.left_out)
        raise ConfigError(f"select: none of the {len(candidates):,} samples is left ({left_out}); ask for less")
    write_selection(output_uri, candidates.table(), _footer(dataset, criteria, needed, bank, others, outcome))
    return outcome


def _leave_out_by_signals(
    dataset: Dataset, candidates: Candidates, criteria: Criteria, teachers: list[str], bank: Bank | None
) -> None:
    """What the teachers' embeddings decide: scores, then confidence, then duplicates among what is left."""
    signals = SignalRows(dataset, candidates)
    score = criteria.score_source
    if score is not None:
        texts = [text for teacher in teachers for text in text_signals(dataset, teacher, score)]
        score_samples(candidates, signals, teachers, texts)
        leave_out_by_score(candidates, criteria)
    if bank is not None:
        label_samples(candidates, signals, bank)
        _leave_out_by_confidence(candidates, criteria)
    if criteria.dedup is not None and candidates.num_in:
        leave_out_duplicates(candidates, signals, teachers[0], criteria.dedup)


def _leave_out_by_confidence(candidates: Candidates, criteria: Criteria) -> None:
    certainties = candidates.certainties
    if criteria.keep_confident is None or certainties is None or not candidates.num_in:
        return
    num_kept = num_of_share(criteria.keep_confident, candidates.num_in)
    candidates.leave_out(Reason.NO_CONFIDENCE, np.isnan(certainties))
    leave_out_the_rest(candidates, certainties, num_kept, Reason.NOT_CONFIDENT)


def _footer(
    dataset: Dataset,
    criteria: Criteria,
    needed: list[Signal],
    bank: Bank | None,
    others: list[Other],
    outcome: Outcome,
) -> dict[str, Any]:
    """What made the selection. No path: other selections stand as their digests."""
    defaults = asdict(Criteria())
    asked = {name: value for name, value in asdict(criteria).items() if value != defaults[name]}
    for name in {"within", "without", "union"} & asked.keys():
        asked[name] = [other.sha256 for other in others if other.option == f"--{name}"]
    return {
        "format_version": FORMAT_VERSION,
        "kind": "selection",
        "spine_fingerprint": dataset.document["spine_fingerprint"],
        "criteria": asked,
        "signals": {signal.folder: dataset.signals[signal]["fingerprint"] for signal in needed},
        "classes": bank.fingerprint if bank else None,
        "num_samples": outcome.num_samples,
        "num_kept": outcome.num_kept,
        "num_added": outcome.num_added,
        "left_out": {left.reason: left.count for left in outcome.left_out},
    }
