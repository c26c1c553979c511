"""Selections: a Parquet of (stem, key) that narrows a build, a training run or an evaluation to the samples it names.

`file` reads and writes one. `criteria` says what is asked of a sample, `select` goes through a dataset and keeps what
meets it: `clean_views`, `scores` and `duplicates` look at what the teachers said, `outcome` says what was kept and why.
No teacher is loaded: a `Bank` of labels is read from the dataset, or comes from `reinforce.banks`, which loads one.
`sentences` does the same for sentences without images: `grounding` finds those that are near the dataset's images.
"""

from reinforce.selection.classes import stored_bank
from reinforce.selection.criteria import Criteria, SentenceCriteria
from reinforce.selection.file import Selection, read_selection
from reinforce.selection.outcome import Outcome
from reinforce.selection.select import select_samples
from reinforce.selection.sentence_outcome import SentenceOutcome
from reinforce.selection.sentences import select_sentences

__all__ = [
    "Criteria",
    "Outcome",
    "Selection",
    "SentenceCriteria",
    "SentenceOutcome",
    "read_selection",
    "select_samples",
    "select_sentences",
    "stored_bank",
]
