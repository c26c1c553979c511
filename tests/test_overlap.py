"""Threads that run ahead and behind: in order, bounded, and what fails there is told here."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from reinforce.overlap import Ahead, Behind


def wait_for(condition: threading.Event) -> None:
    assert condition.wait(10)


def test_items_come_in_order_and_no_further_ahead_than_asked() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    for number, item in enumerate(Ahead(items(), name="test", depth=2)):
        assert item == number
        time.sleep(0.01)
        # One is with the reader, two wait, one is held by the thread until there is room.
        assert len(made) <= number + 4
    assert made == list(range(20))


def test_the_next_item_is_made_while_this_one_is_read() -> None:
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    with closing(Ahead(items(), name="test")) as running:
        assert next(running) == 1
        wait_for(second)


def test_what_making_an_item_raises_is_raised_where_it_is_read() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no second one")

    running = Ahead(items(), name="test")
    assert next(running) == 1
    with pytest.raises(ValueError, match="no second one"):
        next(running)


def test_closing_stops_the_thread_and_closes_what_it_reads() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    running = Ahead(items(), name="endless")
    assert next(running) == 0
    running.close()
    wait_for(closed)
    assert not [thread for thread in threading.enumerate() if thread.name == "endless"]


def test_whoever_waits_for_an_item_is_told_of_the_end() -> None:
    asked, release = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        asked.set()
        release.wait(10)
        yield 1

    running = Ahead(items(), name="test")
    left = threading.Thread(target=lambda: list(running), daemon=True)
    left.start()
    wait_for(asked)
    threading.Timer(0.2, release.set).start()
    assert running.close() in ([], [1])
    left.join(10)
    assert not left.is_alive()


def test_calls_behind_run_in_order_and_wait_for_room() -> None:
    go, seen = threading.Event(), list[int]()
    with Behind("test", depth=2) as behind:
        behind.submit(wait_for, go)

        def submit_all() -> None:
            for number in range(5):
                behind.submit(seen.append, number)

        blocked = threading.Thread(target=submit_all)
        blocked.start()
        blocked.join(0.2)
        assert blocked.is_alive(), "a third call waits for room"
        go.set()
        blocked.join(10)
        behind.finish()
    assert seen == [0, 1, 2, 3, 4]


def test_a_call_that_fails_is_told_and_ends_the_rest() -> None:
    def fail() -> None:
        raise OSError("disk full")

    seen: list[int] = []
    with Behind("test") as behind:
        behind.submit(fail)
        with pytest.raises(OSError, match="disk full"):
            behind.finish()
        with pytest.raises(OSError, match="disk full"):
            behind.submit(seen.append, 1)
    assert seen == []
