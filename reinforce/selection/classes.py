"""Labels for samples: the class whose prompts the clean view is nearest to, and how sure the teacher is of it.

A product of the clean views of one teacher with the embeddings of the classes; no teacher is loaded here.
"""

import numpy as np

from reinforce.config import ConfigError
from reinforce.pseudo_labels import pseudo_labels
from reinforce.selection.candidates import Candidates
from reinforce.selection.signals import SignalRows
from reinforce.shards.banks import Bank, read_bank
from reinforce.shards.dataset import Dataset
from reinforce.shards.schema import Signal, bank_folder, view_column


def stored_bank(dataset: Dataset, name: str, teacher: str) -> Bank:
    """A bank of the dataset by one of its teachers; raises `ConfigError` if there is none, or `FormatError`."""
    if name not in dataset.banks:
        has = ", ".join(dataset.banks) or "none"
        raise ConfigError(f"--bank {name}: the dataset has no such bank; it has {has} (build.banks makes one)")
    bank = read_bank(dataset.store.uri_of(bank_folder(name)), teacher)
    if bank.weights_sha256 != dataset.signals[Signal("image", teacher)]["content"]["weights_sha256"]:
        raise ConfigError(f"--bank {name}: its teacher {teacher} has other weights than the dataset's")
    return bank


def label_samples(candidates: Candidates, signals: SignalRows, bank: Bank) -> None:
    """Gives every sample that is in its label and confidence: the largest softmax over the classes.

    A sample without a clean view has neither. `certainties` are the log-odds of the label, which tell samples apart
    whose confidences are 1 in float32.
    """
    labels = np.full(len(candidates), -1, np.int32)
    certainties = np.full(len(candidates), np.nan, np.float64)
    for shard in candidates.shards_in():
        views = signals.read(shard, Signal("image", bank.teacher), view_column(0))
        labels[candidates.rows(shard)], certainties[candidates.rows(shard)] = pseudo_labels(views, bank)
    candidates.labels, candidates.certainties, candidates.label_names = labels, certainties, bank.labels
    candidates.confidences = (1 / (1 + np.exp(-certainties))).astype(np.float32)
