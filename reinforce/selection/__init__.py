"""Selections: a Parquet of (stem, key) that narrows a build, a training run or an evaluation to the samples it names.

`file` reads and writes one. `criteria` says what is asked of a sample, `select` goes through a dataset and keeps what
meets it: `clean_views`, `scores` and `duplicates` look at what the teachers said, `outcome` says what was kept and why.
No teacher is loaded: a `Bank` of labels is read from the dataset, or comes from `reinforce.banks`, which loads one.
"""

from reinforce.selection.classes import stored_bank
from reinforce.selection.criteria import Criteria
from reinforce.selection.file import Selection, read_selection
from reinforce.selection.outcome import Outcome
from reinforce.selection.select import select_samples

__all__ = ["Criteria", "Outcome", "Selection", "read_selection", "select_samples", "stored_bank"]
