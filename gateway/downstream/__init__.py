"""The client side: what uses aiohttp.web.

`acceptor` accepts client connections, `handshakes` runs their TLS handshakes, `connection` makes a protocol for each,
`body` is the source of a request's body, `response` the sink of its response, `refusal` the response for a fault,
`exchange` one request with its response: its head, its transfers, and the ways it can end.
"""

from gateway.downstream.body import ReceivedBody
from gateway.downstream.connection import TrafficServer
from gateway.downstream.exchange import Exchange
from gateway.downstream.response import ClientResponse

__all__ = ["ClientResponse", "Exchange", "ReceivedBody", "TrafficServer"]
