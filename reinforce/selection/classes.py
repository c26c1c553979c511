"""Labels for samples: the class whose prompts the clean view is nearest to, and how sure the teacher is of it.

A product of the clean views of one teacher with the embeddings of the classes; no teacher is loaded here.
"""

import numpy as np
from jaxtyping import Float64, Int32

from reinforce.config import ConfigError
from reinforce.selection.candidates import Candidates
from reinforce.selection.signals import Rows, SignalRows
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
        labels[candidates.rows(shard)], certainties[candidates.rows(shard)] = _classify(views, bank)
    candidates.labels, candidates.certainties, candidates.label_names = labels, certainties, bank.labels
    candidates.confidences = (1 / (1 + np.exp(-certainties))).astype(np.float32)


def _classify(views: Rows, bank: Bank) -> tuple[Int32[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    """The label of each row, -1 without a view, and the log of its probability by that of all other classes."""
    logits = bank.logit_scale * (views.astype(np.float64) @ bank.embeddings.T.astype(np.float64))
    labels = np.nan_to_num(logits).argmax(axis=1)
    rows = np.arange(len(logits))
    largest = logits[rows, labels]
    if len(bank.labels) == 1:
        return np.where(np.isnan(largest), -1, 0).astype(np.int32), np.where(np.isnan(largest), np.nan, np.inf)
    logits[rows, labels] = -np.inf
    second = logits.max(axis=1)
    certainties = largest - second - np.log(np.exp(logits - second[:, None]).sum(axis=1))
    return np.where(np.isnan(certainties), -1, labels).astype(np.int32), certainties
