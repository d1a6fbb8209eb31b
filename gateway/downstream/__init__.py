"""The client's shore: the only modules that touch aiohttp.web.

`connection` is aiohttp's protocol with its gaps closed, `body` the source of what the client sends, `answer` the
sink of what it gets, `exchange` one request and its answer with everything that may be said about them.
"""

from gateway.downstream.body import RequestBody
from gateway.downstream.connection import TrafficServer, check_aiohttp
from gateway.downstream.exchange import Exchange
from gateway.downstream.response import ClientResponse

__all__ = ["ClientResponse", "Exchange", "RequestBody", "TrafficServer", "check_aiohttp"]
