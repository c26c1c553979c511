"""Where bytes live: list, get, put-if-absent, over local folders, S3, Google Cloud Storage and Azure.

The only package that knows what `s3://` is; everyone else holds a `Store` and paths below it. Importing it is cheap:
obstore and botocore load when the first remote store is opened.
"""

from .carried import Carried, accept, accepted, carry
from .location import open_parent, open_store
from .preflight import preflight
from .shard_uris import SENTENCES, NothingThereError, ShardRef, find_shards
from .spool import open_spool
from .store import ObjectInfo, StorageError, Store

__all__ = [
    "SENTENCES",
    "Carried",
    "NothingThereError",
    "ObjectInfo",
    "ShardRef",
    "StorageError",
    "Store",
    "accept",
    "accepted",
    "carry",
    "find_shards",
    "open_parent",
    "open_spool",
    "open_store",
    "preflight",
]
