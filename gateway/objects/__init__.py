"""The shore of object stores (S3 and what speaks like it): files streamed there and back, through obstore.

`place` makes the store of a route, `incoming` writes objects whole or not at all, `outgoing` reads them by ranges. The
same interface as `gateway.disk`, so that the actions tell one story.
"""

from gateway.objects.incoming import ObjectUpload
from gateway.objects.outgoing import OutgoingObject, open_object
from gateway.objects.place import ObjectPlace

__all__ = ["ObjectPlace", "ObjectUpload", "OutgoingObject", "open_object"]
