"""The files of the live page. Read when the module is loaded: nothing is read from a disk while the loop runs.

Not by `importlib.resources`, which brings 0.4 MiB of modules for archives that the gateway cannot be run from.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from aiohttp import web

_KINDS: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain",
}


class Page:
    """Serves the page at / and its files below /page/. There is no data in them: they need no token."""

    def __init__(self) -> None:
        self._files = _FILES

    def add_to(self, app: web.Application) -> None:
        """Add the paths to an application."""
        app.router.add_get("/", self._index)
        app.router.add_get("/page/{name:.+}", self._file)

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return self._respond(request, "index.html")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return self._respond(request, request.match_info["name"])

    def _respond(self, request: web.Request, name: str) -> web.StreamResponse:
        file = self._files.get(name)
        if file is None:
            return web.Response(status=404, text="There is no such file\n")
        # Asked for again each time, so that a page and its scripts are of the same version.
        headers = {"ETag": f'"{_VERSION}"', "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file[0], headers=headers | {"Content-Type": f"{file[1]}; charset=utf-8"})


def _read(directory: Path, prefix: str = "") -> dict[str, tuple[bytes, str]]:
    files: dict[str, tuple[bytes, str]] = {}
    for entry in directory.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            files |= _read(entry, f"{name}/")
        elif (kind := _KINDS.get(f".{name.rpartition('.')[2]}")) is not None:
            files[name] = (entry.read_bytes(), kind)
    return files


_FILES: Final = _read(Path(__file__).with_name("page"))
_VERSION: Final = hashlib.sha256(b"".join(_FILES[name][0] for name in sorted(_FILES))).hexdigest()[:16]
