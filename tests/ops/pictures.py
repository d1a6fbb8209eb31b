"""Writes the pictures of the live page in docs/: a gateway with clients and services of all kinds, in a real Chromium.

    python -m tests.ops.pictures [SECONDS]

The load runs for this many seconds first, so that the charts have something to show. pngquant, where it is installed,
makes the files smaller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.ops.browser import DESKTOP, PHONE, chromium, open_page
from tests.peers import RawUpstream, RunningGateway, Wire, run_gateway

DOCS: Final = Path(__file__).parents[2] / "docs"
PICTURES: Final = {
    "light": {"viewport": {**DESKTOP, "height": 1400}, "color_scheme": "light"},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light"},
}
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MB: Final = 10**6


async def read_body(wire: Wire) -> bytes:
    """Read a request and drop its body; return the head."""
    head = await wire.read_head()
    lower = head.lower()
    left = int(lower.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in lower else 0
    while left:
        data = await wire.reader.read(min(left, 65536))
        if not data:
            raise ConnectionResetError
        left -= len(data)
    return head


async def transcriber(wire: Wire) -> None:
    while True:
        await read_body(wire)
        await asyncio.sleep(random.uniform(1, 8))
        await wire.send(OK)


async def embedder(wire: Wire) -> None:
    while True:
        await read_body(wire)
        await asyncio.sleep(random.uniform(0.01, 0.06))
        await wire.send(OK)


async def chatter(wire: Wire) -> None:
    await read_body(wire)
    await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await wire.send(b"200\r\n" + b"x" * 512 + b"\r\n")
        await asyncio.sleep(0.05)


async def connect(gateway: RunningGateway) -> Wire:
    address = f"127.0.0.{random.randint(2, 60)}"
    return Wire(*await asyncio.open_connection("127.0.0.1", gateway.port, local_addr=(address, 0)))


async def keep_uploading(gateway: RunningGateway, target: str, size: int, bytes_per_second: float) -> None:
    """Upload one body after the other; with size 0, one of unknown length."""
    while True:
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            client = await connect(gateway)
            framing = f"Content-Length: {size}" if size else "Transfer-Encoding: chunked"
            await client.send(f"POST {target} HTTP/1.1\r\nHost: gw\r\n{framing}\r\n\r\n".encode())
            chunk = min(200_000, max(1, int(bytes_per_second / 5)), size or MB)
            left = size or 10**12
            while left > 0:
                data = b"x" * min(chunk, left)
                left -= len(data)
                await client.send(data if size else b"%x\r\n%b\r\n" % (len(data), data))
                await asyncio.sleep(len(data) / bytes_per_second * random.uniform(0.5, 1.5))
            await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 90)
            await client.close()
        await asyncio.sleep(random.uniform(0, 1))


async def keep_downloading(gateway: RunningGateway, target: str, bytes_per_second: float) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            client = await connect(gateway)
            await client.send(f"GET {target} HTTP/1.1\r\nHost: gw\r\n\r\n".encode())
            while data := await client.reader.read(200_000):  # noqa: ASYNC110 (the pace of a slow client)
                await asyncio.sleep(len(data) / bytes_per_second)


def config(transcribe: str, embed: str, chat: str, directory: str) -> dict[str, Any]:
    health = {"path": "/healthz", "interval": "2s"}
    return {
        "upstreams": {
            "asr": {"endpoints": [transcribe], "max_in_flight": 4, "queue_timeout": "90s"},
            "embeddings": {"endpoints": [embed, "http://127.0.0.1:9"], "health": health},
            "llm": {"endpoints": [chat]},
            "ocr": {"endpoints": ["http://127.0.0.1:9"]},
        },
        "routes": [
            {"name": "transcribe", "match": {"prefix": "/v1/transcribe"}, "forward": {"upstream": "asr"}},
            {"name": "embed", "match": {"prefix": "/v1/embeddings"}, "forward": {"upstream": "embeddings"}},
            {"name": "chat", "match": {"prefix": "/v1/chat"}, "forward": {"upstream": "llm"}},
            {"name": "ocr", "match": {"prefix": "/v1/ocr"}, "forward": {"upstream": "ocr"}},
            {"name": "upload", "match": {"prefix": "/upload"}, "store": {"directory": directory}},
            {"name": "models", "match": {"prefix": "/models/"}, "files": {"directory": directory}},
        ],
    }


def make_model(directory: str) -> None:
    """Create a large file that takes no room."""
    model = Path(directory, "llama-70b.safetensors")
    model.touch()
    os.truncate(model, 40_000 * MB)


async def shrink(paths: list[str]) -> None:
    if (program := shutil.which("pngquant")) is not None:
        command = (program, "--force", "--ext", ".png", "--quality", "70-95", "--strip", *paths)
        await (await asyncio.create_subprocess_exec(*command)).wait()


async def main(load_seconds: float) -> None:
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        make_model(directory)
        asr, embeddings, llm = [
            await stack.enter_async_context(RawUpstream(x)) for x in (transcriber, embedder, chatter)
        ]
        gateway = await stack.enter_async_context(run_gateway(config(asr.url, embeddings.url, llm.url, directory)))
        load = [
            *(
                keep_uploading(gateway, f"/v1/transcribe?file=meeting-{n}.wav", (9 + 4 * n) * MB, 2 * MB)
                for n in range(5)
            ),
            keep_uploading(gateway, "/v1/transcribe?file=field-recording.flac", 400 * MB, 30_000),
            *(keep_uploading(gateway, "/v1/embeddings", 60_000, 100_000) for _ in range(4)),
            *(keep_uploading(gateway, "/v1/chat/completions", 2000, 100_000) for _ in range(2)),
            keep_uploading(gateway, "/upload/corpus-2026-11.tar", 3000 * MB, 3 * MB),
            keep_uploading(gateway, "/upload/camera-7.ts", 0, 1.5 * MB),
            keep_downloading(gateway, "/models/llama-70b.safetensors", 4 * MB),
            keep_downloading(gateway, "/models/llama-70b.safetensors", 1.5 * MB),
        ]
        tasks = [asyncio.create_task(each, name="load") for each in load]
        await asyncio.sleep(load_seconds)
        for _ in range(2):
            client = await connect(gateway)
            await client.send(b"GET /v1/ocr/invoice-0031.pdf HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
            await client.read_to_end()
        browser = await stack.enter_async_context(chromium())
        for name, options in PICTURES.items():
            async with open_page(browser, gateway.ops_url, **options) as page:
                await page.wait_for_timeout(4000)
                await page.screenshot(path=DOCS / f"live-page-{name}.png")
        await shrink([str(DOCS / f"live-page-{name}.png") for name in PICTURES])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
