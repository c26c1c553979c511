"""The source tars behind a page: a stated few are downloaded, one at a time, into a temporary folder.

What cannot be had is told in words: a page without pictures is still worth having.
"""

import tempfile
from collections.abc import Collection
from pathlib import Path

from reinforce.config import SourceConfig
from reinforce.sample import Sample
from reinforce.shards.dataset import DATASET_FILE, Dataset
from reinforce.shards.source import ShardError, SourceShard
from reinforce.storage import StorageError, Store, open_store


class SourceTars:
    """Fetches samples by key. `faults` says, in the order they were met, why images of a shard cannot be shown."""

    def __init__(self, dataset: Dataset, root: str | None) -> None:
        self.faults: list[str] = []
        self.num_read = 0
        self._config: SourceConfig | None = None
        self._store: Store | None = None
        try:
            self._config = SourceConfig(**dataset.document["spine"]["source"])
            self._store = open_store(root or dataset.document["source_root"])
        except (KeyError, TypeError) as error:
            self.faults.append(f"{dataset.store.uri}/{DATASET_FILE} does not say what the source is ({error!r})")
        except (ValueError, OSError) as error:
            self.faults.append(_one_line(error))

    def samples(self, stem: str, keys: Collection[str]) -> dict[str, Sample] | None:
        """The samples of these keys that have an image; None, and a fault noted, if the shard cannot be had."""
        if self._store is None or self._config is None:
            return None
        path = f"{stem}.tar"
        with tempfile.TemporaryDirectory(prefix="reinforce-", ignore_cleanup_errors=True) as folder:
            spool = Path(folder) / "shard.tar"
            try:
                self._store.download(path, spool)
                self.num_read += 1
                found = SourceShard(spool, self._config).samples(selected=frozenset(keys))
                return {sample.key: sample for sample in found if sample.drop is None}
            except FileNotFoundError:
                fault = f"{self._store.uri_of(path)}: no such source shard; say with --root where it is now"
            except ShardError as error:
                fault = f"{self._store.uri_of(path)}: the source shard {error}"
            except (StorageError, OSError) as error:
                fault = _one_line(error)
        self.faults.append(fault)
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
