"""The document that split responds with: a status, headers and body for every file, as JSON, in the form's order."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from gateway.actions.file_request import FileResult
from gateway.http.headers import Headers, ReceivedHeaders


def describe(results: Sequence[FileResult], request_id: str) -> bytes:
    """Return the document, as UTF-8."""
    parts = ",\n".join(_describe_result(result) for result in results)
    return f'{{"request_id": {json.dumps(request_id)}, "parts": [\n{parts}\n]}}\n'.encode()


def _describe_result(result: FileResult) -> str:
    file, fault = result.file, result.fault
    described: dict[str, Any] = {
        **result.facts,
        "part": file.number,
        "field": file.field,
        "filename": file.filename,
        "type": file.content_type,
        "size": result.size,
        "status": fault.status if fault is not None else result.status,
    }
    if fault is not None:
        described["error"] = {"title": fault.kind.info.title, "code": fault.kind.code, "detail": fault.detail}
        return json.dumps(described)
    described["headers"] = _describe_headers(result.headers)
    # The body goes last: JSON stays as the upstream wrote it, numbers and order and all.
    return f"{json.dumps(described)[:-1]}, {_describe_body(result)}}}"


def _describe_headers(headers: Headers) -> dict[str, str | list[str]]:
    described: dict[str, str | list[str]] = {}
    for name, value in headers:
        key, text = name.decode("latin-1").lower(), value.decode("utf-8", "replace")
        before = described.get(key)
        if before is None:
            described[key] = text
        else:
            described[key] = [*before, text] if isinstance(before, list) else [before, text]
    return described


def _describe_body(result: FileResult) -> str:
    kind = (ReceivedHeaders(result.headers).first(b"content-type") or b"").partition(b";")[0].strip().lower()
    try:
        text = result.body.decode()
        if kind == b"application/json" or kind.endswith(b"+json"):
            json.loads(text, parse_constant=_refuse_constant)
            return f'"body": {text.strip()}'
    except (ValueError, RecursionError):
        # Its Content-Type is wrong: passed on byte for byte.
        return f'"body_base64": {json.dumps(base64.b64encode(result.body).decode())}'
    return f'"body": {json.dumps(text)}'


def _refuse_constant(name: str) -> Any:
    """Refuse NaN and the infinities, which Python reads and JSON does not have."""
    raise ValueError(name)
