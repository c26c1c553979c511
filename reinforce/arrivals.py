"""What is prepared of one shard, on its way from the threads that prepare it to whoever reads it, in order.

A shard shares a number of slots with the others: what is in hand and not read yet never grows beyond them.
"""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Arrivals(Generic[_Item]):
    """Items that arrive as futures, each holding a slot until it is read. Always exhaust or `close` it."""

    def __init__(self, slots: threading.Semaphore) -> None:
        self.is_cancelled = False
        self._slots = slots
        self._arrivals: queue.SimpleQueue[Future[_Item] | BaseException | None] = queue.SimpleQueue()
        self._is_exhausted = False

    def put(self, arrival: "Future[_Item] | BaseException | None") -> None:
        """The next item, for which a slot has been taken; or why there are no more, None if it was the last."""
        self._arrivals.put(arrival)

    def put_item(self, item: _Item) -> None:
        """The next item, if it is ready at once."""
        arrival: Future[_Item] = Future()
        arrival.set_result(item)
        self.put(arrival)

    def close(self) -> None:
        """Gives back what has been prepared and will not be used."""
        self.is_cancelled = True
        try:
            while self._next() is not None:
                pass
        except BaseException:
            pass  # the shard is given up already

    def _read(self) -> Iterator[_Item]:
        """Every item, in order. Raises what went wrong while it was fetched or prepared."""
        while (arrival := self._next()) is not None:
            yield arrival.result()

    def _next(self) -> "Future[_Item] | None":
        if self._is_exhausted:
            return None
        arrival = self._arrivals.get()
        if isinstance(arrival, Future):
            self._slots.release()
            return arrival
        self._is_exhausted = True
        self._arrivals.put(arrival)  # `close` may wait here beside the thread that reads
        if arrival is not None:
            raise arrival
        return None
