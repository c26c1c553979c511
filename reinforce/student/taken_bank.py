"""The bank that a student in a teacher's space is trained and evaluated against, and takes along in its folder.

Read once, when a run starts; a bank is small.
"""

from dataclasses import dataclass, replace
from typing import Any

from reinforce.config import ConfigError, StudentConfig
from reinforce.shards.banks import Bank, read_bank
from reinforce.shards.dataset import SIGNAL_FILE, read_document
from reinforce.shards.schema import BANK_FILE, Signal, bank_file, bank_folder
from reinforce.storage import open_store
from reinforce.student.plan import ReadPlan


@dataclass(frozen=True)
class TakenBank:
    """A bank of the dataset with its files, path in the student's folder -> bytes, which are those of the dataset."""

    bank: Bank
    files: dict[str, bytes]

    def provenance(self) -> dict[str, Any]:
        """What `student.json` says of it."""
        names = ("name", "teacher", "fingerprint", "weights_sha256")
        return {name: getattr(self.bank, name) for name in names}


def banks_of(config: StudentConfig, plan: ReadPlan) -> tuple[TakenBank | None, Bank | None]:
    """The bank that goes with the student, and the one that it is evaluated by."""
    if config.bank is None:
        return None, None
    if len(plan.teachers) > 1 and config.loss.kind == "dime_fm":
        # A student with a head for each is evaluated by the first.
        plan = replace(plan, teachers=dict(list(plan.teachers.items())[:1]))
    taken = _take(plan, config.bank, "loss.bank" if config.loss.bank else "evaluation.bank")
    other = config.evaluation.bank if config.evaluation else None
    return taken, taken.bank if other in (None, taken.bank.name) else _take(plan, other, "evaluation.bank").bank


def _take(plan: ReadPlan, name: str, field: str) -> TakenBank:
    """The bank `name` as the run's one teacher embeds it; raises `ConfigError` or `FormatError`, naming the field."""
    if plan.packed is not None:
        raise ConfigError(
            f"student.{field}: packed tars hold no banks; train from the dataset they were packed from, or without one"
        )
    if len(plan.teachers) != 1:
        names = ", ".join(plan.teachers) or "none"
        raise ConfigError(f"student.data.teachers: a bank is that of one teacher, not {names}; name it")
    (teacher,) = plan.teachers
    store = open_store(plan.dataset_uri)
    banks = sorted({info.path.split("/")[1] for info in store.list("banks") if info.path.endswith(f"/{BANK_FILE}")})
    if name not in banks:
        found = ", ".join(banks) or "none"
        raise ConfigError(f"student.{field}: the dataset has no bank {name!r}; it has {found} (build.banks makes one)")
    bank = read_bank(store.uri_of(bank_folder(name)), teacher)
    recorded = read_document(store, f"{Signal('image', teacher).folder}/{SIGNAL_FILE}")
    if recorded is None or bank.weights_sha256 != recorded["content"]["weights_sha256"]:
        raise ConfigError(
            f"student.{field}: bank {name} is of other weights of {teacher} than its embeddings of the images; "
            "build it again under another name"
        )
    paths = [f"{bank_folder(name)}/{BANK_FILE}", bank_file(name, teacher)]
    return TakenBank(bank, {path: store.read(path) for path in paths})
