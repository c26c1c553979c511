"""Versions of the software that made a thing, for its provenance."""

from importlib.metadata import PackageNotFoundError, version

import reinforce


def versions(*packages: str) -> dict[str, str]:
    """This package's own, also where it was never installed but stands on the path, and those of `packages`."""
    found = {"reinforce-datasets": reinforce.__version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
