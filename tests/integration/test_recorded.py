"""Real bodies, recorded byte for byte from Chromium 156, axios, form-data, undici, curl and requests, on every action.

The parts that the gateway finds are compared with those that another parser (multipart) finds in the recording.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import multipart
import pytest

from tests.peers import OK, RawUpstream, Wire, read_request, run_gateway, split_response

RECORDED = sorted((Path(__file__).parents[1] / "recorded").glob("*.http"))


def parts_of(body: bytes, head: bytes) -> list[tuple[str, str | None, bytes]]:
    boundary = re.search(rb"boundary=([^\r\n]+)", head)
    assert boundary is not None
    parser = multipart.MultipartParser(io.BytesIO(body), boundary[1].decode())
    return [(part.name, part.filename, part.raw) for part in parser]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def unescape(name: str | None) -> str | None:
    """Decode the escapes of browsers in a name, since only some parsers decode them."""
    return None if name is None else name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


@pytest.mark.parametrize("recorded", [path.read_bytes() for path in RECORDED], ids=[path.stem for path in RECORDED])
@pytest.mark.parametrize("action", ["forward", "edited", "unwrapped", "split", "store"])
async def test_recorded_bodies_are_parsed(recorded: bytes, action: str, tmp_path: Path) -> None:
    head, _, body = recorded.partition(b"\r\n\r\n")
    expected = parts_of(body, head)
    files = [(name, filename, data) for name, filename, data in expected if filename is not None]
    seen: list[tuple[bytes, bytes]] = []

    async def script(wire: Wire) -> None:
        while True:
            seen.append(await read_request(wire))
            await wire.send(OK)

    actions: dict[str, dict[str, Any]] = {
        "forward": {"forward": {"upstream": "up"}},
        "edited": {"forward": {"upstream": "up", "form_fields": {"add": {"model": "big"}}}},
        "unwrapped": {"forward": {"upstream": "up", "body": "raw"}},
        "split": {"split": {"upstream": "up", "body": "raw", "max_parallel": 1}},
        "store": {"store": {"directory": str(tmp_path)}},
    }
    async with RawUpstream(script) as upstream:
        route = {"name": "r", "match": {"prefix": "/"}, **actions[action]}
        config = {"upstreams": {"up": {"endpoints": [upstream.url]}}, "routes": [route]}
        async with run_gateway(config) as gateway:
            line, _, headers = head.partition(b"\r\n")
            headers = re.sub(rb"(?im)^connection: .*\r\n", b"", headers)
            request = line + b"\r\nHost: gw\r\nConnection: close\r\n" + headers + b"\r\n\r\n" + body
            status, _, text = split_response(await gateway.request(request))
    if action == "forward":
        assert (status, seen[0][1] == body) == (200, True)
    elif action == "edited":
        edited = parts_of(seen[0][1], seen[0][0])
        assert [(unescape(name), unescape(filename), data) for name, filename, data in edited] == [
            ("model", None, b"big"),
            *((unescape(name), unescape(filename), data) for name, filename, data in expected),
        ]
    elif action == "unwrapped":
        assert status == (200 if len(files) == 1 else 422)
        assert [data for _, data in seen] == ([files[0][2]] if status == 200 else [])
    elif action == "split":
        assert (status, [data for _, data in seen]) == (200, [data for _, _, data in files])
        parts = json.loads(text)["parts"]
        named = [(name, unescape(filename)) for name, filename, _ in files]
        assert [(part["field"], unescape(part["filename"])) for part in parts] == named
    else:
        assert [file["sha256"] for file in json.loads(text)["files"]] == [sha256(data) for _, _, data in files]
        assert len(os.listdir(tmp_path)) == len(files)


def test_all_recordings_exist() -> None:
    assert len(RECORDED) == 7
