"""The files of one shard while they are made: in a folder of their own in the spool, and then published one by one.

Nothing of them is visible in the dataset before it is whole.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from reinforce.shard_report import ShardReport
from reinforce.shards.writer import ShardFileWriter
from reinforce.storage import Store


class SpooledFiles:
    """Files that are written beside each other. `publish` each, then `abandon` what is left."""

    def __init__(self, spool: Path, output: Store, report: ShardReport) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=spool))
        self._output, self._report = output, report
        self._writers: list[ShardFileWriter] = []

    def open(self, name: str, schema: pa.Schema) -> ShardFileWriter:
        """A file in the making, by a name of its own in the folder."""
        writer = ShardFileWriter(self._folder / f"{name}.parquet", schema)
        self._writers.append(writer)
        return writer

    def publish(self, writer: ShardFileWriter, path: str, footer: dict[str, Any]) -> None:
        """Commits one of the files. The report counts it, unless another had created it already."""
        if writer.commit(self._output, path, footer):
            self._report.num_files += 1
            self._report.num_bytes += writer.spool.stat().st_size
        writer.spool.unlink()

    def abandon(self) -> None:
        """Removes the folder and what is in it."""
        for writer in self._writers:
            writer.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)
