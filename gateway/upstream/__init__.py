"""The upstream's shore: the only modules that touch aiohttp.client.

`connection` is aiohttp's client with its gaps closed and our own head on the wire, `client` one request sent and its
answer, `guard` which addresses may be connected to, `service` a configured upstream with its gate and endpoints.
"""

from gateway.upstream.client import Client, UpstreamResponse
from gateway.upstream.connection import UpstreamRequest, UpstreamSink
from gateway.upstream.guard import AddressGuard, AllowList
from gateway.upstream.pool import UpstreamPool

__all__ = ["AddressGuard", "AllowList", "Client", "UpstreamPool", "UpstreamRequest", "UpstreamResponse", "UpstreamSink"]
