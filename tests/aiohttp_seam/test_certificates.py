"""The certificates that TLS connections to upstreams are verified with: loaded only where there are some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import connector

from gateway.aiohttp_seam import check_names
from gateway.config import parse_config
from gateway.runtime import opens_tls
from tests.certificates import make_certificate

COUNT = """
import sys
from gateway import run
from gateway.aiohttp_seam.certificates import client_context
from gateway.config import parse_config
from gateway.runtime import prepare
print(client_context().cert_store_stats()["x509"])
prepare(parse_config(sys.argv[1]))
print(client_context().cert_store_stats()["x509"])
"""


def config(**keys: Any) -> str:
    action = {"fetch": keys["fetch"]} if "fetch" in keys else {"forward": {"upstream": "up"}}
    endpoint = keys.get("endpoint", "http://a")
    route = {"name": "a", "match": {"prefix": "/"}, **action}
    return json.dumps({"upstreams": {"up": {"endpoints": [endpoint]}}, "routes": [route]})


@pytest.mark.parametrize(("endpoint", "expected"), [("http://a.example", "0\n0\n"), ("https://a.example", "0\n1\n")])
def test_certificates_are_loaded_only_for_a_config_that_opens_tls_connections(
    tmp_path: Path, endpoint: str, expected: str
) -> None:
    """aiohttp loads them when it is imported: 35 ms and 2.7 MiB."""
    environment = os.environ | {"SSL_CERT_FILE": str(make_certificate(tmp_path).path), "SSL_CERT_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COUNT, config(endpoint=endpoint)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"endpoint": "http://a"}, False),
        ({"endpoint": "https://a"}, True),
        ({"fetch": {"allow": ["http://a/"]}}, False),
        ({"fetch": {"allow": ["http://a/", "HTTPS://b/"]}}, True),
    ],
)
def test_config_opens_tls_connections_to_https_endpoints_and_urls(keys: dict[str, Any], expected: bool) -> None:
    assert opens_tls(parse_config(config(**keys))) is expected


@pytest.mark.parametrize("context", [None, object()])
def test_aiohttp_without_the_context_is_refused(context: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "_SSL_CONTEXT_VERIFIED", context)
    with pytest.raises(RuntimeError, match="_SSL_CONTEXT_VERIFIED is not a context"):
        check_names()
