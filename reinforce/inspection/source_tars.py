"""Where the source shards of a dataset are now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reinforce.inspection.documents import Documents
from reinforce.storage import StorageError, Store, find_shards, open_store

_NUM_PROBED = 16
"""Shards that are looked for before anything is read: one of them must be there."""


@dataclass(frozen=True)
class SourceTars:
    """The source root, and the size of each tar that was listed; those of other shards are asked for when needed."""

    store: Store
    stems: tuple[str, ...]
    sizes: Mapping[str, int]

    @property
    def uri(self) -> str:
        return self.store.uri

    @classmethod
    def find(cls, documents: Documents, stems: Sequence[str], shards: Sequence[str], root: str | None) -> "SourceTars":
        """The tars of `shards` if given, else of all `stems`, below `root` or the recorded one.

        Raises `StorageError` if they cannot be reached, saying which options help.
        """
        root = root or documents.dataset["source_root"]
        if shards:
            # How the root was reached then (`?profile=`) is no part of what it is: the URIs say how to reach it now.
            uri, refs = find_shards(shards, root.partition("?")[0])
            return cls(open_store(uri), tuple(ref.stem for ref in refs), {ref.stem: ref.size for ref in refs})
        try:
            store = open_store(root)
            is_there = not stems or any(store.exists(path_of(stem)) for stem in stems[:_NUM_PROBED])
        except (OSError, ValueError) as error:
            raise StorageError(f"source {root}: {' '.join(str(error).split())[:200]}; {_HELP}") from None
        if not is_there:
            raise StorageError(f"source {root}: no shard of this dataset is there; {_HELP}")
        return cls(store, tuple(stems), {})


_HELP = "give --root if it has moved, or --no-source to leave it out"


def path_of(stem: str) -> str:
    """Where a shard is below the source root."""
    return f"{stem}.tar"
