"""forward, for requests that are here whole and responses that come at once: the steps of the express lane.

`start`, `receive`, `pass_on` and `end` return without waiting. `resume` and `send_rest` go on with such an exchange
where something has to be waited for after all: from there on it is the same as any other.

    call                    valid                     effect
    start(exchange)         once                      the request was sent, a slot is taken; or None, nothing changed
    receive(started)        after start               a response that was parsed, if it is whole; it is passed on next
    pass_on(exchange, ..)   after start               a whole response was written; returns whether it was sent, too
    resume(exchange, ..)    after start, no receive   in place of both
    send_rest(exchange)     after pass_on             waits until all of it was sent
    abandon(exchange, ..)   after start               in place of all: after a bug
    capacity.give_back()    once, after start         the slot is free
"""

from __future__ import annotations

import contextlib
from typing import Final

from gateway.actions.policies import ResponsePolicies
from gateway.actions.relay import relay, wait_sent
from gateway.actions.request_head import make_request_head
from gateway.actions.upload import form_boundary, refuse_empty_form
from gateway.config import Route
from gateway.config.actions import Forward
from gateway.downstream import Exchange
from gateway.errors import Outcome
from gateway.http.headers import response_lines
from gateway.http.routing import RouteMatch
from gateway.http.whole_response import WholeResponse
from gateway.multipart import QuickPart, read_quickly
from gateway.observe.stats import Leg
from gateway.transfer import LaneName, Lanes, Transfer, TransferPolicy
from gateway.upstream import Started, UpstreamPool


class _NothingMore:
    """The source of a body that was passed on whole."""

    async def read(self) -> bytes:
        """Return b"": the end."""
        return b""


_NOTHING_MORE: Final = _NothingMore()


class WholeForward:
    """The steps of one route."""

    def __init__(
        self,
        route: Route,
        config: Forward,
        upstream: UpstreamPool,
        lanes: Lanes,
        *,
        upload_policy: TransferPolicy,
        response_policies: ResponsePolicies,
    ) -> None:
        self._route = route
        self._config = config
        self._upstream = upstream
        #: Its slots.
        self.capacity = upstream.capacity
        self._lanes = lanes
        self._upload_policy = upload_policy
        self._response_policies = response_policies

    def start(self, exchange: Exchange, matched: RouteMatch) -> Started | None:
        """Send the request, which is here whole, without waiting; None if that cannot be done.

        Then nothing was changed. Raises Fault for a request that is to be refused, before it was sent; after any other
        exception it may have been sent.
        """
        body = b""
        parts: list[QuickPart] = []
        if exchange.body is not None:
            body = exchange.body.peek()
            found = self._read_parts(exchange, body)
            if found is None:
                return None
            parts = found
        elif self._config.multipart != "opaque" and b"content-length" in exchange.headers.values:
            refuse_empty_form(exchange)
        # Before anything is taken, which a bug in it would leave behind.
        head = make_request_head(exchange, matched.path, host=self._config.host, framing=self._upstream.framing)
        if not self.capacity.try_take():
            return None
        kept = started = None
        try:
            kept = self._upstream.take_kept()
            if kept is not None:
                state, connection = kept
                exchange.upstream, exchange.endpoint = self._upstream.name, state.label
                started = self._upstream.start(state, connection, head, body)
                exchange.waits.wait_on(Leg.UPSTREAM_RESPONSE, started.sent_at)
                for part in parts:
                    exchange.record_part(part.number, part.kind, part.size, Outcome.COMPLETE)
                if exchange.body is not None:
                    exchange.count_upload(self._upload_policy, len(body), LaneName.EXPRESS, ended=started.sent_at)
        except Exception as bug:
            # Whatever it is: nothing else has the connection and the slot yet, and it is raised again.
            if started is not None:
                self.abandon(exchange, started, bug)
            if kept is not None:
                kept[1].drop()
            self.capacity.give_back()
            raise
        if started is None:
            self.capacity.give_back()
        return started

    def receive(self, started: Started) -> WholeResponse | None:
        """Take a response that was parsed and is whole; None if its head has to be judged by `resume`."""
        return self._upstream.receive(started)

    def pass_on(self, exchange: Exchange, started: Started, response: WholeResponse) -> bool:
        """Write a response; return whether the kernel has taken all of it."""
        status, body, upstream = response.status, response.body, self._upstream
        upstream.count_response(started, status)
        policies = self._response_policies
        policy = policies.endless if response.body_length is None else policies.sized
        lines = response_lines(response.headers, exchange.trace)
        is_sent = exchange.send_whole(status, response.reason, lines, body, response.length)
        if is_sent:
            exchange.count_download(policy, len(body), LaneName.EXPRESS)
        else:
            download = exchange.begin_download(policy, _NOTHING_MORE, response.body_length)
            download.start(LaneName.EXPRESS)
            download.count_whole(len(body))
        upstream.release(started, status)
        return is_sent

    async def resume(self, exchange: Exchange, started: Started) -> None:
        """Wait for the response to the request that was sent, and pass it on.

        Raises Fault; cancelling cuts both peers.
        """
        response = await self._upstream.send(
            started.head,
            None,
            on_endpoint=exchange.record_endpoint,
            on_connected=exchange.record_connected,
            started=started,
        )
        async with response:
            await relay(exchange, response, self._response_policies, self._lanes, upload=exchange.upload)

    async def send_rest(self, exchange: Exchange) -> None:
        """Wait until the client has taken the response that was written. Raises Fault; cancelling cuts the client."""
        download, sink = exchange.download, exchange.response
        with contextlib.ExitStack() as stack:
            if sink is not None and isinstance(download, Transfer):
                # It has begun.
                stack.push(download)
                await wait_sent(download, sink)
            elif sink is not None:
                await sink.end()

    def abandon(self, exchange: Exchange, started: Started, bug: Exception) -> None:
        """Close the request after a bug."""
        self._upstream.abandon(started, bug)
        if isinstance(exchange.download, Transfer):
            exchange.download.end(Outcome.BUG)

    def _read_parts(self, exchange: Exchange, body: bytes) -> list[QuickPart] | None:
        """Return the parts of a form, None if its reader has to read it, or if the body is too long. Raises Fault."""
        if len(body) > self._route.limits.max_body:
            return None
        boundary = form_boundary(exchange) if self._config.multipart != "opaque" else None
        return [] if boundary is None else read_quickly(body, boundary, self._route.limits)
