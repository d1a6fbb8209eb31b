"""Reading multipart/form-data while it streams, strictly and without copying.

aiohttp's `MultipartReader` stays the reader of parts: its `next()`, its heads. What is slow or lenient in it is
replaced through its two doors, the content object (`content.FormContent`) and the part reader
(`reader.PartReader`). The same reader runs pulled by an action (`reader.read_form`) or driven by chunks pushed
past it (`inspect.PartInspector`), so that both judge a body alike.
"""

from gateway.multipart.content import FormContent
from gateway.multipart.disposition import Disposition, boundary_of, parse_disposition
from gateway.multipart.inspect import PartInspector
from gateway.multipart.reader import Part, PartKind, PartReader, read_form

__all__ = [
    "Disposition",
    "FormContent",
    "Part",
    "PartInspector",
    "PartKind",
    "PartReader",
    "boundary_of",
    "parse_disposition",
    "read_form",
]
