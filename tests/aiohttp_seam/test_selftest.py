"""The start-up self-test: it passes here, and fails by name where a name is missing or behaves otherwise."""

from __future__ import annotations

import re
import tomllib
from asyncio import sslproto
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_proto import ResponseHandler
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

import gateway.aiohttp_seam
from gateway.aiohttp_seam import ClientConnection, ServerConnection, check_behaviour, check_names, selftest
from tests.peers import forward_config, run_gateway
from tests.project.test_project import private_names

ROOT = Path(__file__).parents[2]
SEAM = ROOT / "gateway" / "aiohttp_seam"


async def test_installed_aiohttp_passes() -> None:
    check_names()
    await check_behaviour()


@pytest.mark.parametrize("name", ["_pause_reading_for_buffer", "_resume_reading_for_buffer", "_buffer_paused"])
def test_missing_name_is_told_with_the_version_and_the_range(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp 3.14.3 has none of these."""
    monkeypatch.delattr(BaseProtocol, name)
    with pytest.raises(RuntimeError) as caught:
        check_names()
    assert f"aiohttp.base_protocol.BaseProtocol.{name} is missing" in str(caught.value)
    assert aiohttp.__version__ in str(caught.value)
    assert selftest.SUPPORTED in str(caught.value)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ResponseHandler, "_payload"),
        (sslproto.SSLProtocol, "_incoming"),
        (sslproto._SSLProtocolTransport, "_ssl_protocol"),
    ],
)
def test_name_that_only_instances_have_is_missed_too(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "NAMES", ((owner, (name, "_gone")),))
    with pytest.raises(RuntimeError, match=rf"{owner.__name__}\._gone is missing"):
        check_names()


def test_parser_in_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp.http_parser, "HttpRequestParser", aiohttp.http_parser.HttpRequestParserPy)
    with pytest.raises(RuntimeError, match="without its C parser"):
        check_names()


def do_nothing(*_: Any) -> None:
    """Stand for a method that no longer does what it did."""


ALWAYS_NONE = property(do_nothing, do_nothing)
ALWAYS_FALSE = property(lambda _: False, do_nothing)


def ask_aiohttp(cls: type, name: str) -> Callable[..., Any]:
    """Return the method that `cls` replaces, as if the gap were not closed."""
    method: Callable[..., Any] = getattr(cls.__mro__[1], name)
    return method


@pytest.mark.parametrize(
    ("owner", "name", "replacement", "message"),
    [
        (BaseProtocol, "_pause_reading_for_buffer", do_nothing, "a paused connection receives nothing"),
        (BaseProtocol, "_resume_reading_for_buffer", do_nothing, "check_request did not end"),
        (ServerConnection, "pause_reading", do_nothing, "_reading_paused is set by flow control"),
        (BaseProtocol, "resume_reading", do_nothing, "what came before the pause is fetched"),
        (StreamReader, "set_read_chunk_size", do_nothing, "set_read_chunk_size sets both limits"),
        (ServerConnection, "take_decoder", do_nothing, "a chunked body has a decoder"),
        (
            ServerConnection,
            "data_received",
            ask_aiohttp(ServerConnection, "data_received"),
            "a paused body gets no data",
        ),
        (RequestHandler, "_current_request", ALWAYS_NONE, "check_lost_connection did not end"),
        (ResponseHandler, "should_close", True, "a response whose parser was detached has ended"),
        (
            ClientConnection,
            "is_untouched",
            lambda _: True,
            "a connection that the upstream closed is not used again",
        ),
        (selftest, "detach_parser", do_nothing, "a response whose parser was detached has ended"),
        (selftest, "set_receive_size", do_nothing, "max_size limits what is received"),
        (selftest, "is_plain_tcp", lambda _: False, "a loopback connection is plain TCP"),
    ],
)
async def test_name_that_behaves_otherwise_is_told(
    owner: Any, name: str, replacement: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(owner, name, replacement, raising=False)
    with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
        await check_behaviour()
    assert aiohttp.__version__ in str(caught.value)


async def test_gateway_does_not_start_where_a_name_behaves_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseProtocol, "_pause_reading_for_buffer", do_nothing)
    with pytest.raises(RuntimeError, match="a paused connection receives nothing"):
        async with run_gateway(forward_config("http://127.0.0.1:1")):
            pass


def test_supported_range_is_the_one_of_the_package() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"aiohttp{selftest.SUPPORTED}" in dependencies


def test_package_docstring_and_self_test_name_every_private_name_used() -> None:
    used = set().union(*(private_names(path) for path in SEAM.glob("*.py")))
    docstring = gateway.aiohttp_seam.__doc__ or ""
    table = docstring[docstring.index("  ---") : docstring.index("Names without an underscore")]
    assert used == set(re.findall(r"(?<!\w)_\w+|max_size", table))
    checked = {name for _, names in selftest.NAMES for name in names}
    by_behaviour, by_function = {"_factory", "_acquired"}, {"_SSL_CONTEXT_VERIFIED"}
    by_import = {"_SelectorSocketTransport", "_SSLProtocolTransport", "_ErrInfo"}
    assert used - checked == by_behaviour | by_function | by_import
