"""A local folder for files under way: tars fetched, files not committed yet."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def open_spool() -> Iterator[Path]:
    """A folder for files under way, locked while in use; what killed runs left is unlocked, and removed here."""
    for lock in Path(tempfile.gettempdir()).glob("reinforce-spool-*/lock"):
        with suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent)
    temporary = tempfile.TemporaryDirectory(prefix="reinforce-spool-", ignore_cleanup_errors=True)
    with temporary as folder, (Path(folder) / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield Path(folder)
