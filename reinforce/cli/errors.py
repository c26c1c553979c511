"""How a command ends: an error a user can cause is one line on stderr and an exit status."""

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

_is_terminated = False


@contextmanager
def one_line_errors(resume: str = "run the same command again to resume") -> Iterator[None]:
    """Turns every error a user can cause into one line on stderr and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nreinforce: interrupted; {resume}", file=sys.stderr, flush=True)
        # A download under way would keep the interpreter alive; nothing it does is wanted any more. A reader process
        # that waits to hand over its batch would outlive this one: it holds both ends of the pipe.
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(143 if _is_terminated else 130)
    except OSError as error:
        print(f"reinforce: {_describe_os_error(error)}", file=sys.stderr)
        raise typer.Exit(2) from None
    except ValueError as error:
        if not type(error).__module__.startswith("reinforce."):
            raise
        print(f"reinforce: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _describe_os_error(error: OSError) -> str:
    text = " ".join(str(error).split())
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and "free some space" not in text:
        return f"{text}: free some space (temporary files go to TMPDIR) and start again; what is finished is kept"
    return text


def terminate_as_interrupt() -> None:
    """From now on SIGTERM, as schedulers send it before they kill, leaves everything as Ctrl-C does."""

    def terminate(*_: object) -> None:
        # A flag, not an exception of its own: Ray's calls turn every exception of a signal into KeyboardInterrupt.
        global _is_terminated
        _is_terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
