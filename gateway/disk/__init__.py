"""The disk's shore: the only modules that touch files of users. Every call that may block runs off the event loop.

`workers` runs those calls, `names` makes a client's file name harmless (pure), `incoming` writes files whole or not
at all, `staging` is where they are until they are whole, `outgoing` reads them, never from outside of their directory.
"""

from gateway.disk.incoming import IncomingFile, StoredFile, Upload
from gateway.disk.names import numbered, random_name, safe_name
from gateway.disk.outgoing import OutgoingFile, open_below
from gateway.disk.staging import sweep
from gateway.disk.workers import DiskWorkers

__all__ = [
    "DiskWorkers",
    "IncomingFile",
    "OutgoingFile",
    "StoredFile",
    "Upload",
    "numbered",
    "open_below",
    "random_name",
    "safe_name",
    "sweep",
]
