"""Where uploads are stored and files are served from: a local directory, or a bucket of an object store.

Actions use the protocols of `interface` and get their storage from `make_storage`; one test suite
(tests/storage/test_conformance.py) holds both storages to the same promises. Nothing here blocks the event loop.

    interface   Storage, Upload, IncomingFile, StoredFileReader
    directory   a local directory            bucket   a bucket of an object store
    file        one file of it               object   one object of it
    staging     files until the commit       s3       the calls to the object store
    threads     blocking calls, by directory batches  chunks collected for a thread
    page_cache  what is in memory of a file  hashing  the digest of a file
    cached_pieces  what of it was found there shortly before
    names       file names from clients, and which of them are free (pure)
"""

from __future__ import annotations

import math
from pathlib import Path

from gateway.config import Route
from gateway.config.actions import Files, Store
from gateway.storage.bucket import BucketStorage
from gateway.storage.directory import DirectoryStorage
from gateway.storage.interface import IncomingFile, Storage, StoredFile, StoredFileReader, Upload
from gateway.storage.names import NameRules
from gateway.storage.s3 import BucketClient, load_object_store
from gateway.storage.staging import sweep
from gateway.storage.threads import Disks, DiskThreads

__all__ = [
    "BucketStorage",
    "DirectoryStorage",
    "DiskThreads",
    "Disks",
    "IncomingFile",
    "NameRules",
    "Storage",
    "StoredFile",
    "StoredFileReader",
    "Upload",
    "load_object_store",
    "make_storage",
    "sweep",
]


def make_storage(route: Route, config: Store | Files, disks: Disks) -> Storage:
    """Return the storage of a route: a bucket where the config has `url`, else its `directory`."""
    idle, hash_threads = route.timeouts.idle, disks.without_disk()
    if config.url is not None:
        return BucketStorage(BucketClient(config.url, config.endpoint, config.region, idle), hash_threads)
    sync = config.sync_timeout if isinstance(config, Store) else math.inf
    directory = config.directory or ""
    return DirectoryStorage(Path(directory), disks.of(directory, idle, sync), hash_threads)
