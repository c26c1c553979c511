"""A build on a Ray cluster, from the connection to the summary."""

from collections.abc import Sequence
from dataclasses import replace

from ray.exceptions import LocalRayletDiedError, RaySystemError, RpcError
from rich.console import Console

from reinforce.config import ConfigError
from reinforce.prefetch import StageTimes
from reinforce.progress import Progress
from reinforce.runners.cluster import alive_nodes, connected, needs_of
from reinforce.runners.crew import Crew
from reinforce.runners.failures import reason_of
from reinforce.runners.ledger import Ledger
from reinforce.runners.ray_driver import Driver
from reinforce.runners.summary import BuildSummary
from reinforce.runners.worker import Job, ShardWorker
from reinforce.storage import ShardRef, Store


def run_ray(
    refs: Sequence[ShardRef],
    job: Job,
    output: Store,
    console: Console,
    *,
    address: str,
    uris: Sequence[str],
    max_workers: int | None = None,
    failed_before: set[str] | None = None,
    needs_start: bool = False,
    worker_class: type = ShardWorker,
) -> BuildSummary:
    """Reinforces shards on a cluster. `uris` are all that workers reach in stores, models included.

    With `needs_start` a worker starts even if there are no shards: it is what writes the banks.

    Raises `ConfigError` when no worker can start.
    """
    progress = Progress(len(refs), sum(ref.size for ref in refs), StageTimes(), console)
    ledger = Ledger(output, progress, num_shards=len(refs), failed_before=failed_before or set())
    if not refs and not needs_start:
        return ledger.summary(0)
    with connected(address):
        needs = needs_of(job.config, alive_nodes())
        job = replace(job, num_prepare=needs.num_prepare)
        crew = Crew(worker_class, job, needs, max_workers=max_workers, needs_start=needs_start)
        driver = Driver(refs, crew, ledger, uris, job.config.ray)
        with progress, ledger.open(job.config, worker=str(needs)):
            try:
                driver.run()
            except (RaySystemError, RpcError, LocalRayletDiedError) as error:
                raise ConfigError(f"the cluster is gone ({reason_of(error)}); start again to go on") from None
            finally:
                for hand in list(crew.hands.values()):
                    crew.dismiss(hand)
    return ledger.summary(driver.leases.num_open)
