"""The upstream's shore: the only modules that touch aiohttp.client.

`connection` is aiohttp's client with its gaps closed and our own head on the wire, `client` one request sent and its
answer, `guard` which addresses may be connected to, `service` a configured upstream with its gate and endpoints.
"""

from gateway.upstream.client import Client, ReceivedAnswer
from gateway.upstream.connection import Sending, UpstreamSink
from gateway.upstream.guard import AddressGuard, AllowList
from gateway.upstream.pool import Service

__all__ = ["AddressGuard", "AllowList", "Client", "ReceivedAnswer", "Sending", "Service", "UpstreamSink"]
