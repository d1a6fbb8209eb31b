"""The upstream side: requests to configured services, the only package that uses aiohttp.client (with the seam).

`pool` is a configured upstream with its capacity and endpoints, `client` sends a request over a kept connection,
`request` and `response` are the two halves of that, `guard` limits which addresses `fetch` may connect to,
`resolver` looks up names.
"""

from gateway.upstream.client import UpstreamClient, Whose
from gateway.upstream.guard import AddressGuard, AllowList
from gateway.upstream.pool import Started, UpstreamPool
from gateway.upstream.request import OutgoingBody, UpstreamSink
from gateway.upstream.request_head import RequestHead
from gateway.upstream.resolver import Resolver
from gateway.upstream.response import UpstreamResponse
from gateway.upstream.state import UpstreamState

__all__ = [
    "AddressGuard",
    "AllowList",
    "OutgoingBody",
    "RequestHead",
    "Resolver",
    "Started",
    "UpstreamClient",
    "UpstreamPool",
    "UpstreamResponse",
    "UpstreamSink",
    "UpstreamState",
    "Whose",
]
