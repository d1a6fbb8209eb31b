"""Reading multipart/form-data while it streams, strictly and without copying.

aiohttp's `MultipartReader` stays the reader of parts: its `next()`, its heads. What is slow or lenient in it is
replaced through its two doors, the content object (`content.FormContent`) and the part reader
(`reader.PartReader`). The same reader runs pulled by an action (`reader.read_form`) or driven by chunks pushed
past it (`inspect.PartInspector`), so that both judge a body alike. Where parts are changed, `writer.FormWriter`
makes the form new.
"""

from gateway.multipart.content import FormContent
from gateway.multipart.disposition import Disposition, boundary_of, parse_disposition
from gateway.multipart.inspect import PartInspector
from gateway.multipart.reader import Part, PartKind, PartReader, read_form
from gateway.multipart.strict import check_strict
from gateway.multipart.writer import FormField, FormWriter, quote_name

__all__ = [
    "Disposition",
    "FormContent",
    "FormField",
    "FormWriter",
    "Part",
    "PartInspector",
    "PartKind",
    "PartReader",
    "boundary_of",
    "check_strict",
    "parse_disposition",
    "quote_name",
    "read_form",
]
