"""Iterators that run ahead of whoever reads them, and calls that run behind whoever asks: a thread and a bound each.

What bounds memory is the depth: so many items wait, whatever the length of the whole.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self, TypeVar

_Item = TypeVar("_Item")

_POLL_S = 0.1
_END_WAIT_S = 10.0


class Ahead(Iterator[_Item]):
    """The items of an iterator, made by a thread that starts at once, up to `depth` before they are asked for.

    What making them raises is raised where they are read.
    """

    def __init__(self, items: Iterator[_Item], *, name: str, depth: int = 1) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[_Item | None, BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._unread: list[_Item] = []
        self._thread = threading.Thread(target=self._make, name=name, daemon=True)
        self._thread.start()

    def __next__(self) -> _Item:
        item, error = self._ready.get()
        if error is not None:
            self._tell(error)
            raise error
        return item  # type: ignore[return-value]  # None stands beside an error only

    def close(self) -> list[_Item]:
        """Stops the thread and closes the iterator; returns what was made and not read."""
        self._stopped.set()
        self._thread.join(_END_WAIT_S)
        with suppress(queue.Empty):
            while True:
                item, error = self._ready.get_nowait()
                self._unread += [item] if error is None else []  # type: ignore[list-item]  # likewise
        self._tell(StopIteration())
        return self._unread

    @property
    def has_ended(self) -> bool:
        """Whether the thread is through with the iterator."""
        return not self._thread.is_alive()

    def _tell(self, error: BaseException) -> None:
        """Leaves an end for whoever asks next, or is waiting."""
        with suppress(queue.Full):
            self._ready.put_nowait((None, error))

    def _make(self) -> None:
        try:
            for item in self._items:
                if not self._put(item, None):
                    self._unread.append(item)
                    break
            else:
                self._put(None, StopIteration())
        except BaseException as error:  # the reader's to handle
            self._put(None, error)
        finally:
            if isinstance(self._items, Ahead | Generator):
                self._items.close()

    def _put(self, item: _Item | None, error: BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put((item, error), timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False


class Behind:
    """Runs calls one after another in a thread of its own, at most `depth` of them waiting. Use as a context manager.

    After a call that raised, the others are not run; the error is raised at the next `submit`, or by `finish`.
    """

    def __init__(self, name: str, *, depth: int = 4) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._slots = threading.BoundedSemaphore(depth + 1)
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, call: Callable[..., object], *args: object) -> None:
        """Runs `call(*args)` after those before it; waits for room."""
        self._raise()
        self._slots.acquire()
        self._pool.submit(self._run, call, args)

    def finish(self) -> None:
        """Waits for all calls; raises what the first bad one raised."""
        self._pool.submit(lambda: None).result()
        self._raise()

    def _run(self, call: Callable[..., object], args: tuple[object, ...]) -> None:
        try:
            if self._error is None:
                call(*args)
        except BaseException as error:
            self._error = error
        finally:
            self._slots.release()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


@dataclass(frozen=True)
class Turn:
    """A shard's place in the captioners' queue: they are one shard's at a time, in the order of the shards."""

    before: threading.Event | None = None
    """Set when the captions of the shard before are written; None for the first."""
    done: threading.Event = field(default_factory=threading.Event)
