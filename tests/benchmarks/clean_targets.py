"""A copy of a dataset in which every view has the clean view's embedding: what the published trainer of DIME-FM reads.

Its features are of one image each, its student sees random crops. For comparisons alone: what such a copy says of its
views is not true.
"""

import shutil
import tempfile
from pathlib import Path

from reinforce.shards.dataset import open_dataset
from reinforce.shards.writer import ShardFileWriter
from reinforce.storage import open_store

CLEAN = "view_000"


def write_with_clean_targets(source: Path, target: Path) -> Path:
    """Writes the copy, footers and all, unless it is there; returns its folder."""
    if target.exists():
        return target
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns("runs"))
    dataset, store = open_dataset(str(source)), open_store(str(partial))
    for signal in dataset.signals:
        if signal.kind != "image":
            continue
        for stem in dataset.stems:
            (partial / signal.file(stem)).unlink()
            with dataset.open(signal, stem) as file, tempfile.NamedTemporaryFile() as spool:
                table = file.read()
                clean = table.select(["key", *[CLEAN] * (table.num_columns - 1)]).rename_columns(table.column_names)
                writer = ShardFileWriter(Path(spool.name), clean.schema)
                for batch in clean.to_batches():
                    writer.append(batch)
                writer.commit(store, signal.file(stem), file.footer)
    partial.rename(target)
    return target
