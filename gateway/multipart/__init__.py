"""Parse multipart/form-data while it streams, strictly and without copying; write new forms.

aiohttp's `MultipartReader` iterates over the parts and parses their heads. Its slow and its lenient code is replaced
at its two extension points: the content object (`content.FormContent`) and the part reader (`reader.PartReader`).
An action pulls parts with `reader.FormParts`; `inspect.PartInspector` runs the same code on chunks that are pushed
into it, so that both accept the same bodies. `quick` reads small, plain forms without either. `writer.FormWriter`
writes re-encoded forms.
"""

from gateway.multipart.content import FormContent
from gateway.multipart.disposition import Disposition, boundary_of, form_boundary_of, parse_disposition
from gateway.multipart.inspect import EndedPart, PartInspector
from gateway.multipart.quick import QuickPart, read_quickly
from gateway.multipart.reader import FormParts, Part, PartKind, PartReader
from gateway.multipart.strict import check_strict
from gateway.multipart.writer import FormField, FormWriter, quote_name

__all__ = [
    "Disposition",
    "EndedPart",
    "FormContent",
    "FormField",
    "FormParts",
    "FormWriter",
    "Part",
    "PartInspector",
    "PartKind",
    "PartReader",
    "QuickPart",
    "boundary_of",
    "check_strict",
    "form_boundary_of",
    "parse_disposition",
    "quote_name",
    "read_quickly",
]
