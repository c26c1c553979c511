"""When two spellings name one label: the same rule for a bank in a dataset and for labels given on the device.

Standard library alone.
"""


def bank_key(label: str) -> str:
    """What two spellings of one label have in common: case and spaces do not tell labels apart."""
    return " ".join(label.split()).casefold()
