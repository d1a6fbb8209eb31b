"""Serves the ops port on a listening socket."""

from __future__ import annotations

import contextlib
import socket
from typing import Final, cast

from aiohttp import web

from gateway.config.values import Address
from gateway.downstream.acceptor import Acceptor
from gateway.ops.app import OpsApp
from gateway.ops.view import OpsView

#: Descriptors held for clients of the ops port.
_SPARES: Final = 4
#: A connection without a request for this long is closed, also before its first.
IDLE_SECONDS: Final = 30.0
#: For responses under way when the port closes.
_SHUTDOWN_SECONDS: Final = 1.0


async def serve_ops(stack: contextlib.AsyncExitStack, view: OpsView, sock: socket.socket) -> Address:
    """Serve the ops port until `stack` is closed, which closes the socket, too; return its address."""
    stack.callback(sock.close)
    runner = web.AppRunner(
        OpsApp(view).make(), access_log=None, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=_SHUTDOWN_SECONDS
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    acceptor = Acceptor(sock, cast(web.Server, runner.server), spares=_SPARES)
    stack.push_async_callback(acceptor.close)
    return Address(*sock.getsockname()[:2])
