"""An HTTP API that answers in JSON: connections that are kept, a bound on requests in flight, retries with backoff.

Requests run on an event loop in a daemon thread. So they can be called from any thread, from a notebook too, whose own
loop is busy; and an interrupt ends them at once, where threads of a pool would be waited for.
"""

import asyncio
import json
import random
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from reinforce.storage import StorageError
from reinforce.weights import ModelError

T = TypeVar("T")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""The wait before the first retry, doubled each time (less up to half of it, by chance), and its bound."""

LONGEST_RETRY_AFTER_S = 60.0
"""What a server may ask for by `Retry-After`, in seconds."""

_CONNECT_S = 10.0
_POLL_S = 0.5
_KEEP_ALIVE_S = 4.0
"""Shorter than the 5 s of common servers: a connection that the other side is about to close is not used."""

_REFUSED = (400, 413, 422)
_PASSING = (408, 409, 425, 429)


class EndpointError(StorageError):
    """An endpoint that gave no usable answer, however often it was asked.

    A `StorageError`, for what follows is the same: shards are tried again, and a cluster waits for it to come back.
    """


class RefusedError(ModelError):
    """This very request was refused; another may be answered."""


class _PassingError(Exception):
    """An attempt that failed in a way that may pass."""

    def __init__(self, problem: str, retry_after_s: float = 0.0) -> None:
        super().__init__(problem)
        self.retry_after_s = retry_after_s


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first error ends the others, which `asyncio.gather` alone would let go on."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise


class Endpoint:
    """`url` is the base that paths are put behind. No error shows `key`, which is sent as a bearer token if not empty.

    `title` begins every error; `hints` ends those of a status.
    """

    def __init__(
        self,
        url: str,
        *,
        title: str,
        key: str,
        hints: dict[int, str],
        concurrency: int,
        timeout_s: float,
        retries: int,
    ) -> None:
        if not key.isprintable():
            raise ModelError(f"{title}: the key holds a line break or another control character{hints.get(401, '')}")
        self._url, self._title, self._key, self._hints = url, title, key, hints
        self._concurrency, self._timeout_s, self._retries = concurrency, timeout_s, retries
        self._loop = asyncio.new_event_loop()
        self._running: Future[Any] | None = None
        threading.Thread(target=_serve, args=(self._loop,), name="endpoint", daemon=True).start()
        self._session = self.run(self._open())
        weakref.finalize(self, _close, self._loop, self._session)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it to its end in the thread of the requests; cancels it when interrupted, here or by `cancel`."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._running = future
        try:
            while True:
                try:
                    # A signal that comes just before the wait does not end it.
                    return future.result(timeout=_POLL_S)
                except TimeoutError:
                    if future.done():
                        raise
        except BaseException:
            future.cancel()
            raise

    def cancel(self) -> None:
        """Cancels what another thread runs, which raises `CancelledError` there."""
        if self._running is not None:
            self._running.cancel()

    async def ask(
        self,
        path: str,
        parse: Callable[[bytes], T],
        *,
        body: Callable[[], bytes] | None = None,
        retries: int | None = None,
    ) -> T:
        """GETs `path`, or POSTs what `body` makes, and parses the answer; what `parse` raises counts as a bad answer.

        `body` is called when the request's turn has come. Raises `EndpointError` after the last retry, `RefusedError`
        for a request that is refused, `ModelError` for what every request would meet.
        """
        retries = self._retries if retries is None else retries
        # The place is kept while it waits to try again: a server that cannot keep up is asked less.
        async with self._slots:
            data = None if body is None else body()
            for attempt in range(retries + 1):
                try:
                    return self._parsed(parse, await self._send(path, data))
                except _PassingError as error:
                    problem, retry_after_s = str(error), error.retry_after_s
                if attempt < retries:
                    backoff_s = min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1)
                    await asyncio.sleep(max(retry_after_s, backoff_s))
        advice = "see that the server runs, or raise timeout_s or retries"
        raise EndpointError(f"{self._title}: {retries + 1} attempts failed ({problem}); {advice}")

    async def _send(self, path: str, data: bytes | None) -> bytes:
        """One attempt."""
        method = "GET" if data is None else "POST"
        try:
            async with self._session.request(method, self._url + path, data=data, allow_redirects=False) as response:
                answer = await response.read()
        except TimeoutError as error:
            raise _PassingError(str(error) or f"no answer within {self._timeout_s:g} s") from None
        except aiohttp.ClientResponseError as error:  # its text holds a proxy's URL, password and all
            raise _PassingError(f"{error.status}: {self._shown(error.message)}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _PassingError(self._shown(str(error) or type(error).__name__)) from None
        status = response.status
        if 200 <= status < 300:
            return answer
        said = f"{status}: {self._shown(_message(answer))}"
        if status in _PASSING or (status >= 500 and status != 501):
            raise _PassingError(said, _seconds(response.headers.get("Retry-After", "")))
        refused = RefusedError if status in _REFUSED else ModelError
        raise refused(f"{self._title}: {said}{self._hints.get(status, '')}")

    def _parsed(self, parse: Callable[[bytes], T], answer: bytes) -> T:
        try:
            return parse(answer)
        except (ValueError, LookupError, TypeError, AttributeError):
            shown = self._shown(_message(answer))
            raise _PassingError(f"an answer that is none of this API: {shown}") from None

    def _shown(self, text: str) -> str:
        # A server may repeat the key that it was sent.
        text = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return text[:200] or "no message"

    async def _open(self) -> aiohttp.ClientSession:
        self._slots = asyncio.Semaphore(self._concurrency)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        return aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=min(_CONNECT_S, self._timeout_s)),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            proxy=_proxy_of(self._url),
        )


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession) -> None:
    async def close() -> None:
        await session.close()
        loop.stop()

    asyncio.run_coroutine_threadsafe(close(), loop)


def _proxy_of(url: str) -> str | None:
    """What HTTP_PROXY and its kin name. aiohttp's own `trust_env` also reads ~/.netrc, and fails at what it finds."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _seconds(retry_after: str) -> float:
    """`Retry-After` as seconds; 0 if it is a date or nothing."""
    return min(float(retry_after), LONGEST_RETRY_AFTER_S) if retry_after.strip().isdecimal() else 0.0


def _message(answer: bytes) -> str:
    """What a server says of an error, in the forms that are common."""
    text = answer.decode(errors="replace")
    try:
        document = json.loads(text)
        error = document.get("error", document)
        text = str(error.get("message") or error.get("detail") or text) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        pass
    return text
