"""A build in which everything goes wrong that can, against one that nothing disturbs."""

import os
import random
from pathlib import Path

import pytest

from tests.chaos import check, run_chaos

NUM_EVENTS, NUM_SHARDS = 4, 16


@pytest.mark.serial
@pytest.mark.timeout(600)
def test_a_build_survives_chaos(tmp_path: Path) -> None:
    seed = int(os.environ.get("REINFORCE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
    print(f"REINFORCE_CHAOS_SEED={seed}")
    outcome = run_chaos(tmp_path, seed=seed, num_events=NUM_EVENTS, num_shards=NUM_SHARDS, pause_s=0.5)
    assert outcome.events.total() == NUM_EVENTS
    check(outcome, tmp_path, NUM_SHARDS)
