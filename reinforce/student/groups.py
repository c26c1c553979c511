"""The shards of one worker, opened group by group, each group while the one before it is read.

Local tars are read in place; remote ones are fetched to the spool and removed after use.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reinforce.exchange.notes import open_dataset_or_packed
from reinforce.shards.reader import FormatError
from reinforce.shards.source import ShardError
from reinforce.storage import StorageError, open_store
from reinforce.student.choices import Visit
from reinforce.student.packed import open_packed_shard
from reinforce.student.plan import ReadPlan
from reinforce.student.shard import UnusableSampleError, VisitedShard, open_shard


class ReadError(ValueError):
    """The data cannot be read as the recipe asks; the message is one line that names the shard."""

    def __init__(self, message: str) -> None:
        # A DataLoader hands on a worker's error with its whole traceback as the message.
        super().__init__(message.rsplit("ReadError: ", 1)[-1].strip())


class Opener:
    """Opens the groups of shards of one worker, each while the one before it is read."""

    def __init__(self, plan: ReadPlan, spool: Path) -> None:
        self.plan = plan
        self._spool = spool
        self._dataset = open_dataset_or_packed(plan.dataset_uri)
        self._source = open_store(plan.source_root)

    def groups(self, visits: Iterator[Visit], counts: Counter[str]) -> Iterator[list[VisitedShard]]:
        """The opened shards, group by group; what was skipped is added to `counts` when its group comes."""
        size = self.plan.data.open_shards
        with ThreadPoolExecutor(1, "open") as pool:
            ahead = pool.submit(self.open_all, list(itertools.islice(visits, size)))
            while (group := ahead.result()) is not None:
                ahead = pool.submit(self.open_all, list(itertools.islice(visits, size)))
                shards, skipped = group
                counts.update(skipped)
                for shard in shards:
                    counts.update(shard.counts)
                try:
                    yield shards
                finally:
                    for shard in shards:
                        shard.close()
                        if shard.tar.parent == self._spool:
                            shard.tar.unlink(missing_ok=True)

    def open_all(self, group: list[Visit]) -> tuple[list[VisitedShard], Counter[str]] | None:
        """The opened shards of some visits, and what was skipped; None of no visits. Tars that were fetched stay."""
        if not group:
            return None
        shards, skipped = [], Counter[str]()
        for visit in group:
            try:
                shards.append(self._open(visit))
            except UnusableSampleError as error:
                raise ReadError(str(error)) from None
            except (FileNotFoundError, StorageError) as error:
                self._refuse(visit, "missing", error)
                skipped["missing_shard"] += 1
            except (FormatError, ShardError) as error:
                self._refuse(visit, "damaged", error)
                skipped["damaged_shard"] += 1
        return shards, skipped

    def _open(self, visit: Visit) -> VisitedShard:
        tar = self._tar(visit)
        if self.plan.packed is not None:
            return open_packed_shard(self.plan, self.plan.packed, visit, tar)
        return open_shard(self.plan, self._dataset, visit, tar)

    def _tar(self, visit: Visit) -> Path:
        name = f"{visit.stem}.tar"
        local = self._source.local_path(name)
        if local is not None:
            if not local.is_file():
                raise FileNotFoundError(f"{local}: no such file")
            return local
        target = self._spool / f"{visit.number}-{hashlib.sha256(visit.stem.encode()).hexdigest()[:16]}.tar"
        self._source.download(name, target)
        return target

    def _refuse(self, visit: Visit, policy: str, error: Exception) -> None:
        if getattr(self.plan.data, policy) == "error":
            text = " ".join(str(error).split())
            raise ReadError(
                f"shard {visit.stem}: {text}; to go on without it: --set student.data.{policy}=skip"
            ) from None
