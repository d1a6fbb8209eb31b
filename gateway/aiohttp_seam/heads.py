"""The heads that aiohttp's parser makes, as far as they are used. Verified against aiohttp 3.14.5.

aiohttp declares them as named tuples, which those of its C parser are not. A compiler that relies on annotations
(deploy/compile.py) would refuse them, so here they are what they have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from aiohttp.http import HttpVersion10, RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from gateway.http.whole_request import WholeRequest


class ParsedRequest(Protocol):
    """What is used of the head of a request that aiohttp's parser makes."""

    @property
    def method(self) -> str:
        """The method."""
        ...

    @property
    def path(self) -> str:
        """The target as it was sent."""
        ...

    @property
    def version(self) -> tuple[int, int]:
        """The version of HTTP."""
        ...

    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Names and values as received."""
        ...

    @property
    def should_close(self) -> bool:
        """Whether the connection closes after the response."""
        ...


class ParsedResponse(Protocol):
    """What is used of the head of a response that aiohttp's parser makes."""

    @property
    def code(self) -> int:
        """The status."""
        ...

    @property
    def reason(self) -> str:
        """The reason phrase."""
        ...

    @property
    def version(self) -> tuple[int, int]:
        """The version of HTTP."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; the first of those with the same name."""
        ...

    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Names and values as received."""
        ...

    @property
    def chunked(self) -> bool:
        """Whether the body comes in the chunked coding."""
        ...


#: The head of a request; of one that came whole, its body, too.
Message = ParsedRequest | WholeRequest
#: Stands for a head that could not be read.
UNREADABLE: Final[ParsedRequest] = RawRequestMessage(
    "UNKNOWN", "/", HttpVersion10, CIMultiDictProxy(CIMultiDict()), (), True, None, False, False, URL("/")
)
