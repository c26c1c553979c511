"""The shards of an import or of a packing, one after another: what fails is recorded, what is finished is kept.

A shard has one attempt a run: nothing is computed that would go another way the next time, and stores repeat their own
requests.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console

from reinforce.config import ConfigError
from reinforce.prefetch import StageTimes
from reinforce.progress import Progress
from reinforce.runners.failures import Failure
from reinforce.runners.ledger import Ledger
from reinforce.runners.summary import BuildSummary, describe
from reinforce.shard_report import ShardReport
from reinforce.shards.schema import failure_file
from reinforce.storage import ShardRef, Store


def run_shards(
    refs: Sequence[ShardRef],
    work: Callable[[ShardRef], ShardReport],
    output: Store,
    console: Console,
    *,
    options: BaseModel,
    existing: Collection[str],
    num_before: int,
) -> BuildSummary:
    """Does `work` for each shard. `existing` are the files in the output, `num_before` the shards finished before.

    Raises what would go wrong with every shard: a full disk, an error of the user's.
    """
    progress = Progress(len(refs), sum(ref.size for ref in refs), StageTimes(), console)
    failed_before = {ref.stem for ref in refs if failure_file(ref.stem) in existing}
    ledger = Ledger(output, progress, num_shards=len(refs), failed_before=failed_before)
    num_left = len(refs)
    with progress, ledger.open(options):
        for ref in refs:
            try:
                ledger.done(work(ref), ref.size)
            except Exception as error:
                failure = Failure.of(error)
                if failure.kind == "disk" or isinstance(error, ConfigError):
                    raise
                ledger.attempt(ref.stem, failure, 1)
                ledger.gave_up(ref.stem, [failure.reason])
            num_left -= 1
            if ledger.stopped:
                break
        summary = ledger.summary(num_left)
    summary.num_complete_before = num_before
    summary.num_shards += num_before
    return summary


def check_apart(output: Store, source_root: str) -> None:
    """Raises `ConfigError` if what is written would lie among the tars that are read."""
    if output.uri.partition("?")[0] == source_root.partition("?")[0]:
        raise ConfigError(f"--output {output.uri}: is the folder of the source's tars; give one of its own")


def describe_run(summary: BuildSummary, told: Mapping[str, str]) -> str:
    """The last lines of a run. `told` are counts that are nothing left out, with what they mean."""
    lines = [f"{summary.done.counts.pop(name, 0):,} {words}" for name, words in told.items()]
    return "\n".join([describe(summary), *(line for line in lines if not line.startswith("0 "))])


def fetch(ref: ShardRef, spool: Path) -> Path:
    """The tar as a local file: in place if it is one, else in the spool."""
    local = ref.store.local_path(ref.path)
    if local is not None:
        return local
    target = spool / "source.tar"
    target.unlink(missing_ok=True)
    ref.store.download(ref.path, target, size=ref.size)
    return target
