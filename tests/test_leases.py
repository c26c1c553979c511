"""Who builds what next, and who is to blame: the policy alone, without Ray."""

import pytest

from reinforce.runners.failures import AlikeFailures, Failure
from reinforce.runners.leases import Leases, Place
from reinforce.storage import ShardRef, open_store

ERROR = Failure("other", "RuntimeError: illegal memory access")
STORE = Failure("store", "StorageError: no answer")
DEATH = Failure("lost", "its worker died")
A1, A2, B1 = Place("a1", "node-a"), Place("a2", "node-a"), Place("b1", "node-b")


def leases(**sizes: int) -> Leases:
    store = open_store("/nowhere")
    return Leases(ShardRef(store, f"{stem}.tar", stem, size) for stem, size in sizes.items())


def take(queue: Leases, place: Place, *peers: Place, depth: int = 1) -> str | None:
    ref = queue.take(place, [place, *peers], depth=depth)
    return ref.stem if ref else None


def test_the_longest_go_first() -> None:
    queue = leases(small=1, large=9, middle=5)
    assert [take(queue, place, A1, A2, B1) for place in (A1, A2, B1)] == ["large", "middle", "small"]
    assert take(queue, A1, B1) is None
    assert queue.num_open == 3
    queue.done(A1, "large")
    assert queue.num_open == 2


def test_a_second_lease_only_while_nobody_else_would_be_idle() -> None:
    queue = leases(a=4, b=3, c=2, d=1)
    assert take(queue, A1, B1, depth=2) == "a"
    assert take(queue, A1, B1, depth=2) == "b"
    assert take(queue, A1, B1, depth=2) is None, "its hands are full"
    assert take(queue, B1, A1, depth=2) == "c"
    assert take(queue, B1, A1, depth=2) is None, "the last shard is for whoever is free first"


def test_what_failed_is_tried_on_another_node_and_given_up_after_three_attempts() -> None:
    queue = leases(bad=1)
    assert take(queue, A1, A2, B1) == "bad"
    assert queue.failed(A1, "bad", ERROR, [A1, A2, B1]).number == 1
    assert take(queue, A2, A1, B1) is None, "another node has not tried it yet"
    assert take(queue, B1, A1, A2) == "bad"
    assert queue.failed(B1, "bad", ERROR, [A1, A2, B1]).number == 2
    assert take(queue, A1, A2, B1) is None, "another worker has not tried it yet"
    assert take(queue, A2, A1, B1) == "bad"
    verdict = queue.failed(A2, "bad", ERROR, [A1, A2, B1])
    assert verdict.reasons == (ERROR.reason,) * 3
    assert not verdict.retire
    assert queue.num_open == 0


def test_the_only_worker_tries_again() -> None:
    queue = leases(bad=1)
    for attempt in (1, 2, 3):
        assert take(queue, A1) == "bad"
        assert queue.failed(A1, "bad", ERROR, [A1]).number == attempt
    assert queue.num_open == 0


def test_bad_input_is_given_up_at_once_and_blames_nobody() -> None:
    queue = leases(a=3, b=2, c=1)
    for stem in ("a", "b", "c"):
        assert take(queue, A1) == stem
        verdict = queue.failed(A1, stem, Failure("input", "is not a tar"), [A1])
        assert (verdict.reasons, verdict.retire) == (("is not a tar",), False)


def test_two_different_shards_in_a_row_are_the_workers_fault() -> None:
    queue = leases(a=3, b=2, c=1)
    assert take(queue, A1, B1) == "a"
    assert not queue.failed(A1, "a", ERROR, [A1, B1]).retire
    assert take(queue, A1, B1) == "b"
    verdict = queue.failed(A1, "b", ERROR, [A1, B1])
    assert (verdict.retire, verdict.number) == (True, 0)
    # Neither is charged: each still has its three attempts.
    for stem in ("c", "a", "b"):
        assert take(queue, B1) == stem
        if stem == "c":
            queue.done(B1, "c")
            continue
        assert queue.failed(B1, stem, ERROR, [B1]).number == 1


def test_a_success_in_between_clears_the_worker() -> None:
    queue = leases(a=3, b=2, c=1)
    for stem, is_good in (("a", False), ("b", True), ("c", False)):
        assert take(queue, A1, B1) == stem
        if is_good:
            queue.done(A1, stem)
        else:
            assert not queue.failed(A1, stem, ERROR, [A1, B1]).retire


def test_shards_that_failed_elsewhere_do_not_blame_the_worker() -> None:
    queue = leases(a=2, b=1)
    for stem in ("a", "b"):
        assert take(queue, A1 if stem == "a" else A2, B1) == stem
        queue.failed(A1 if stem == "a" else A2, stem, ERROR, [A1, A2, B1])
    for stem in ("a", "b"):
        assert take(queue, B1, A1, A2) == stem
        assert not queue.failed(B1, stem, ERROR, [A1, A2, B1]).retire


def test_a_node_that_loses_two_workers_by_its_fault_is_blocked() -> None:
    queue = leases(a=4, b=3, c=2, d=1)
    for place in (A1, A2):
        for _ in range(2):
            stem = take(queue, place, B1)
            assert stem is not None
            verdict = queue.failed(place, stem, ERROR, [place, B1])
        assert verdict.retire
    assert queue.blocked_nodes == {"node-a"}


def test_a_full_disk_retires_the_worker_at_once() -> None:
    queue = leases(a=1)
    take(queue, A1, B1)
    verdict = queue.failed(A1, "a", Failure("disk", "no space left"), [A1, B1])
    assert (verdict.retire, verdict.number) == (True, 0)
    assert take(queue, B1) == "a"


def test_an_outage_of_the_store_is_nobodys_fault_but_a_node_without_network_is() -> None:
    queue = leases(a=3, b=2, c=1)
    take(queue, A1, B1)
    queue.failed(A1, "a", STORE, [A1, B1])
    take(queue, A1, B1)
    assert queue.failed(A1, "b", STORE, [A1, B1]).is_outage
    queue = leases(a=4, b=3, c=2)
    take(queue, A1, B1)
    take(queue, B1, A1)
    queue.failed(A1, "a", STORE, [A1, B1])
    queue.done(B1, "b")
    take(queue, A1, B1)
    verdict = queue.failed(A1, "c", STORE, [A1, B1])
    assert (verdict.retire, verdict.is_outage) == (True, False)


def test_what_killed_a_worker_is_built_alone_and_given_up_after_three_deaths() -> None:
    queue = leases(deadly=4, other=3, third=2, fourth=1)
    assert [take(queue, A1, depth=2) for _ in range(2)] == ["deadly", "other"]
    verdicts = queue.died(A1, DEATH, [B1])
    assert {stem: verdict.number for stem, verdict in verdicts.items()} == {"deadly": 1}
    for place, number in ((B1, 2), (A2, 3)):
        while (stem := take(queue, place, depth=2)) != "deadly":
            assert stem is not None
            queue.done(place, stem)
        assert take(queue, place, depth=2) is None
        assert queue.died(place, DEATH, [])["deadly"].number == number
    assert queue.num_open == 0


def test_deaths_on_different_shards_in_a_row_are_the_nodes_fault() -> None:
    queue = leases(a=2, b=1)
    take(queue, A1, B1)
    assert queue.died(A1, DEATH, [B1])["a"].number == 1
    take(queue, A2, B1)
    assert queue.died(A2, DEATH, [B1])["b"].retire
    assert queue.losses == {"node-a": 1}


def test_a_lost_node_costs_nothing_until_it_happens_too_often() -> None:
    queue = leases(a=1)
    for _ in range(12):
        assert take(queue, A1) == "a"
        assert queue.vanished(A1, with_node=True) == {}
    assert take(queue, B1) == "a"
    reasons = queue.vanished(B1, with_node=True)["a"]
    assert reasons[-1] == "its node was lost, 13 times in all"
    assert (len(reasons), queue.num_open) == (3, 0)


def test_an_outage_charges_nobody_however_often_it_comes_back() -> None:
    places = [Place(f"w{index}", f"n{index}") for index in range(4)]
    queue = leases(**{f"s{index}": 1 for index in range(12)})
    for _ in range(12):
        for place in places:
            stem = take(queue, place, *places)
            if stem is not None:
                assert queue.failed(place, stem, STORE, places).reasons is None
    assert queue.num_open == 12


def test_the_shard_at_the_models_is_charged_whatever_came_first() -> None:
    queue = leases(a=4, b=3, c=2, d=1)
    assert [take(queue, A1, depth=2) for _ in range(2)] == ["a", "b"]
    assert list(queue.died(A1, DEATH, [B1], "b")) == ["b"]


@pytest.mark.parametrize(("num_shards", "stops_at"), [(12, 11), (1000, 51)])
def test_a_run_stops_when_more_than_a_twentieth_fails_alike(num_shards: int, stops_at: int) -> None:
    alike = AlikeFailures(num_shards)
    for index in range(stops_at - 1):
        assert alike.add(f"{index:05d}", f"StorageError: cannot read s3://b/{index:05d}.tar: access denied") is None
        assert alike.add(f"{index:05d}", f"is truncated inside member {index}.jpg") is None
    reason = alike.add("x", "StorageError: cannot read s3://b/x.tar: access denied")
    assert reason is not None
    assert f"{stops_at} of {num_shards} shards failed alike" in reason
