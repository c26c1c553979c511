"""Iterators that run ahead of whoever reads them, and calls that run behind whoever asks: a thread and a bound each.

What bounds memory is the depth: so many items wait, whatever the length of the whole.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

_Item = TypeVar("_Item")

_POLL_S = 0.1
_END_WAIT_S = 10.0


def ahead(items: Iterator[_Item], *, name: str, depth: int = 1) -> Generator[_Item]:
    """The same items, made by a thread up to `depth` items before they are asked for.

    What making them raises is raised where they are read. Close the generator to stop the thread.
    """
    ready: queue.Queue[tuple[_Item | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: _Item | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item, None):
                    break
            else:
                put(None, StopIteration())
        except BaseException as error:  # the reader's to handle
            put(None, error)
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=make, name=name, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None stands beside an error only
    finally:
        stopped.set()
        thread.join(_END_WAIT_S)


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
        self._slots.acquire()
        self._raise()
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
