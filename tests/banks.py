"""Banks of random embeddings, for students that no teacher has seen."""

from pathlib import Path

import numpy as np

from reinforce.shards.banks import Bank, bank_content, record_bank, write_bank
from reinforce.shards.schema import bank_folder, fingerprint
from reinforce.storage import open_store


def save_random_bank(
    folder: Path,
    name: str,
    labels: tuple[str, ...],
    dim: int,
    *,
    teacher: str = "random",
    weights_sha256: str = "0" * 64,
) -> str:
    """Writes `banks/<name>` below a dataset's or a student's folder; its URI. The same labels give the same rows."""
    rows = np.random.default_rng(0).normal(size=(len(labels), dim)).astype(np.float32)
    content = bank_content(labels, ("{}",))
    store = open_store(str(folder))
    record_bank(store, name, content, num_duplicates=0)
    bank = Bank(
        name=name,
        teacher=teacher,
        labels=labels,
        templates=("{}",),
        embeddings=rows / np.linalg.norm(rows, axis=1, keepdims=True),
        logit_scale=50.0,
        logit_bias=None,
        weights_sha256=weights_sha256,
        fingerprint=fingerprint(content),
    )
    write_bank(store, bank, content=content, num_truncated_texts=0)
    return store.uri_of(bank_folder(name))
