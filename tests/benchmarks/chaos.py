"""One build and thirty disasters: workers, nodes and drivers die, the store misbehaves, and nothing is lost or doubled.

    python -m tests.benchmarks.chaos [--seed N] [--events 30] [--shards 110]

Prints the events as they happen, with the seed that replays their order. Raises if a key is missing or there twice, a
file differs from an undisturbed build's, a finished shard was computed again, or anything temporary is left.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests.chaos import check, run_chaos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=int, default=30)
    parser.add_argument("--shards", type=int, default=110)
    args = parser.parse_args()
    seed = args.seed or random.SystemRandom().randrange(1, 2**31)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.monotonic()
        outcome = run_chaos(Path(folder), seed=seed, num_events=args.events, num_shards=args.shards, pause_s=0.3)
        elapsed_s = time.monotonic() - started_s
        check(outcome, Path(folder), args.shards)
    print(
        f"{args.shards} shards, {outcome.events.total()} events in {elapsed_s:.0f} s: "
        + ", ".join(f"{event} {count}" for event, count in sorted(outcome.events.items()))
        + f"; {outcome.num_faults} faults of the store, {outcome.num_drivers} drivers. Every key once, every file as "
        "undisturbed, no shard computed again, nothing temporary left"
    )


if __name__ == "__main__":
    main()
