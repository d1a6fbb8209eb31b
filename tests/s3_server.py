"""A real S3-speaking server (moto's) in a thread, and what tests ask it directly."""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import quote

_ATTEMPTS = 5
# The type: the server would parse a form. The owner: it refuses anonymous requests for an object that has one.
_HEADERS = {
    "Content-Type": "application/octet-stream",
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request",
}


class S3Server:
    """One bucket, named `bucket`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, _HEADERS, method=method)
        for attempt in range(_ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    data: bytes = response.read()
                    return data
            except urllib.error.HTTPError as exc:
                exc.close()
                # moto lists its uploads while another of its threads changes them, and then fails.
                if exc.code != HTTPStatus.INTERNAL_SERVER_ERROR or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("not reached")

    def keys(self) -> list[str]:
        text = self.ask("/bucket?list-type=2").decode()
        return [piece.partition("</Key>")[0] for piece in text.split("<Key>")[1:]]

    def open_uploads(self, key: str = "") -> int:
        """Return how many multipart uploads are open, of one key or of all."""
        return self.ask("/bucket?uploads").count(f"<Key>{key}</Key>".encode() if key else b"<UploadId>")

    def abort_upload(self, key: str) -> None:
        """Abort the open multipart upload of a key."""
        uploads = re.findall(r"<UploadId>([^<]*)</UploadId><Key>([^<]*)</Key>", self.ask("/bucket?uploads").decode())
        identifier = {key: identifier for identifier, key in uploads}[key]
        self.ask(f"/bucket/{quote(key)}?uploadId={identifier}", "DELETE")


@contextmanager
def run_s3_server() -> Iterator[S3Server]:
    """Run a server."""
    # Imported here: it takes a second, which only the tests of object stores should pay.
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Server(f"http://{host}:{port}")
    server.stop()


def main() -> None:
    """Run a server until standard input ends; print its URL."""
    with run_s3_server() as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
