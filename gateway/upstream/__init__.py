"""The upstream side: what uses aiohttp.client.

`connection` writes a request, `client` sends it over a kept connection and returns its response, `guard` limits which
addresses may be connected to, `pool` is a configured upstream with its capacity and endpoints.
"""

from gateway.upstream.client import Client, UpstreamResponse
from gateway.upstream.connection import UpstreamRequest, UpstreamSink
from gateway.upstream.guard import AddressGuard, AllowList
from gateway.upstream.pool import UpstreamPool

__all__ = ["AddressGuard", "AllowList", "Client", "UpstreamPool", "UpstreamRequest", "UpstreamResponse", "UpstreamSink"]
