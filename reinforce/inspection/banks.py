"""Banks of labels as an inspection tells of them: how many labels and templates, by whom. Each is read whole."""

from typing import Any

from reinforce.inspection.figures import BankFigures, Problem
from reinforce.inspection.footers import noted
from reinforce.inspection.listing import Listing
from reinforce.shards.banks import read_bank
from reinforce.shards.dataset import Dataset, read_document
from reinforce.shards.reader import FormatError, ShardFile
from reinforce.shards.schema import BANK_FILE, Signal, bank_file, bank_folder


def bank_figures(dataset: Dataset, listing: Listing, problems: list[Problem]) -> tuple[BankFigures, ...]:
    """The figures of each bank. What is wrong with one of its files is noted, and the file counts as not there."""
    found = []
    teachers = [signal.model for signal in listing.signals if signal.kind == "image"]
    for name, embedded_by in listing.banks.items():
        path = f"{bank_folder(name)}/{BANK_FILE}"
        with noted(problems, dataset, path):
            document = read_document(dataset.store, path)
            if document is None:
                raise FormatError(f"is missing, and nothing says what {bank_folder(name)} is made of")
            cut = {}
            for teacher in embedded_by:
                with noted(problems, dataset, bank_file(name, teacher)):
                    cut[teacher] = _num_truncated(dataset, listing, name, teacher)
            found.append(_figures(name, document, cut, [teacher for teacher in teachers if teacher not in cut]))
    return tuple(found)


def _num_truncated(dataset: Dataset, listing: Listing, name: str, teacher: str) -> int:
    """The prompts that a teacher cut; raises `FormatError` if its file is not one of this bank and this dataset."""
    bank = read_bank(dataset.store.uri_of(bank_folder(name)), teacher)
    images = listing.signals.get(Signal("image", teacher))
    if images is None:
        raise FormatError(f"the dataset has no images by a teacher {teacher}")
    if images["content"].get("weights_sha256") != bank.weights_sha256:
        raise FormatError(f"its weights_sha256 is not that of embeddings/{teacher}/image")
    with ShardFile(dataset.store, bank_file(name, teacher)) as file:
        return int(file.footer["num_truncated_texts"])


def _figures(name: str, document: dict[str, Any], cut: dict[str, int], missing: list[str]) -> BankFigures:
    try:
        content = document["content"]
        sizes = len(content["labels"]), len(content["templates"]), int(document["num_duplicates"])
    except (KeyError, TypeError) as error:
        raise FormatError(f"says nothing of {error}") from None
    return BankFigures(name, *sizes, tuple(cut), tuple(missing), {name: num for name, num in cut.items() if num})
