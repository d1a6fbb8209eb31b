"""Where uploads are stored and files are served from: a local directory, or a bucket of an object store.

Every call that may block runs off the event loop. `names` makes a client's file name harmless (pure), `threads` runs
blocking calls, `disk_upload` and `bucket_upload` write files completely or not at all, `staging` is where files of a
directory are until they are complete, `disk_download` and `bucket_download` read them.
"""

from gateway.storage.bucket import Bucket
from gateway.storage.bucket_download import OutgoingObject, open_object
from gateway.storage.bucket_upload import ObjectUpload
from gateway.storage.disk_download import OutgoingFile, open_below
from gateway.storage.disk_upload import IncomingFile, StoredFile, Upload
from gateway.storage.names import numbered, random_name, safe_name
from gateway.storage.staging import sweep
from gateway.storage.threads import DiskThreads

__all__ = [
    "Bucket",
    "DiskThreads",
    "IncomingFile",
    "ObjectUpload",
    "OutgoingFile",
    "OutgoingObject",
    "StoredFile",
    "Upload",
    "numbered",
    "open_below",
    "open_object",
    "random_name",
    "safe_name",
    "sweep",
]
