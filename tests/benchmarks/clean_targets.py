"""A copy of a dataset in which every view has the clean view's embedding: what the published trainer of DIME-FM reads.

Its features are of one image each, its student sees random crops, another one each time. So the copy may have more
views than the dataset: they cost nothing. For comparisons alone: what such a copy says of its views is not true.
"""

import shutil
import tempfile
from pathlib import Path

from reinforce.shards.dataset import SIGNAL_FILE, open_dataset
from reinforce.shards.digests import document_text
from reinforce.shards.schema import view_column
from reinforce.shards.writer import ShardFileWriter
from reinforce.storage import open_store


def write_with_clean_targets(source: Path, target: Path, num_views: int) -> Path:
    """Writes the copy, of `num_views` views besides the clean one, unless it is there; returns its folder."""
    if target.exists():
        return target
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns("runs"))
    dataset, store = open_dataset(str(source)), open_store(str(partial))
    columns = [view_column(view) for view in range(num_views + 1)]
    for signal, document in dataset.signals.items():
        if signal.kind != "image":
            continue
        (partial / signal.folder / SIGNAL_FILE).write_text(document_text(document | {"columns": columns}))
        for stem in dataset.stems:
            (partial / signal.file(stem)).unlink()
            with dataset.open(signal, stem) as file, tempfile.NamedTemporaryFile() as spool:
                table = file.read(["key", columns[0]])
                clean = table.select(["key", *[columns[0]] * len(columns)]).rename_columns(["key", *columns])
                writer = ShardFileWriter(Path(spool.name), clean.schema)
                for batch in clean.to_batches():
                    writer.append(batch)
                writer.commit(store, signal.file(stem), file.footer)
    partial.rename(target)
    return target
