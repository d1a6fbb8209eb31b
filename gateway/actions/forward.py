"""forward: the client's request to an upstream, the upstream's response to the client, both as they flow.

The request body is sent by a task of its own while the response is awaited and relayed: an upstream may respond before
it has read everything, and its response is relayed at once. Whatever breaks, neither peer is left with a body that
looks complete.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.actions.mirror import Mirror, Tee
from gateway.actions.policies import response_policies, upload_policy, upstream_limits
from gateway.actions.reencode import BodyFiles, ReencodedBody
from gateway.actions.relay import relay
from gateway.actions.request_head import make_request_head
from gateway.actions.upload import check_upload, form_boundary, form_digest, refuse_empty_form
from gateway.actions.verbatim import VerbatimBody, inspect_body
from gateway.actions.whole_forward import WholeForward
from gateway.config import FormFields, Route
from gateway.config.actions import Forward
from gateway.downstream import Exchange, ReceivedBody
from gateway.filters import FilterFactory, TransformFactory
from gateway.http.routing import RouteMatch
from gateway.observe.stats import Leg
from gateway.transfer import AsyncFilter, Filter, Lanes, Transfer
from gateway.upstream import UpstreamPool


class ForwardAction:
    """The action of one route."""

    def __init__(
        self,
        route: Route,
        config: Forward,
        upstream: UpstreamPool,
        lanes: Lanes,
        *,
        filters: Sequence[FilterFactory],
        mirror: Mirror | None,
    ) -> None:
        self._route = route
        self._config = config
        self._upstream = upstream
        self._lanes = lanes
        self._mirror = mirror
        self._factories = filters
        self._observers = [factory for factory in filters if not isinstance(factory, TransformFactory)]
        # What makes a body go upstream in another form than it came: any body, or only forms.
        self._has_transforms = len(self._observers) != len(filters)
        self._must_reencode_forms = (
            config.body == "raw" or config.multipart == "strict" or config.form_fields != FormFields()
        )
        idle = (upstream.idle_seconds, f"{upstream.timeouts_key}.idle")
        self._upload_policy = upload_policy(route, Leg.UPSTREAM_WRITE, upstream_limits(route, *idle))
        self._response_policies = response_policies(route, *idle)

    @property
    def whole(self) -> WholeForward | None:
        """The steps for exchanges that are here whole; None where bodies are mirrored, filtered or encoded anew."""
        is_plain = self._mirror is None and not self._factories and not self._must_reencode_forms
        if not is_plain or self._config.body == "multipart" or self._upstream.framing == "chunked":
            return None
        if self._route.match.form_fields:
            # Whether it matches is in the form.
            return None
        return WholeForward(
            self._route,
            self._config,
            self._upstream,
            self._lanes,
            upload_policy=self._upload_policy,
            response_policies=self._response_policies,
        )

    async def close(self) -> None:
        """Cut what is still being mirrored."""
        if self._mirror is not None:
            await self._mirror.close()

    async def __call__(self, exchange: Exchange, matched: RouteMatch) -> None:
        """Run one exchange. Raises Fault; cancelling cuts both peers."""
        exchange.upstream = self._upstream.name
        if exchange.body is not None:
            await self._forward_body(exchange, matched, exchange.body)
            return
        exchange.check_expectation()
        if self._config.multipart != "opaque":
            refuse_empty_form(exchange)
        self._wait_for_slot(exchange)
        async with self._upstream.capacity:
            self._tee(exchange, matched)
            await self._send(exchange, matched, None)

    async def _forward_body(self, exchange: Exchange, matched: RouteMatch, source: ReceivedBody) -> None:
        limit = check_upload(exchange, self._route)
        boundary = form_boundary(exchange) if self._config.multipart != "opaque" else None
        is_reencoded = self._must_reencode(boundary)
        # A declared length was checked: the body cannot be longer.
        filters: list[Filter] = [limit] if exchange.length is None else []
        async_filters: list[AsyncFilter] = []
        observer = None
        if not is_reencoded:
            inspectors, observer = inspect_body(exchange, self._route, boundary, self._observers)
            filters += inspectors
        self._wait_for_slot(exchange)
        async with self._upstream.capacity:
            tee = self._tee(exchange, matched)
            # After the others: a chunk they refuse is not mirrored.
            filters += [tee] if tee is not None else []
            digests = form_digest(exchange, self._factories) if boundary is not None else []
            async_filters = [*digests, *([observer] if observer is not None else [])]
            with exchange.begin_upload(self._upload_policy, [*filters, *digests], async_filters) as upload:
                if tee is not None and (is_reencoded or observer is not None):
                    tee.primary = upload
                if is_reencoded:
                    await self._send_reencoded(exchange, matched, source, boundary, upload)
                else:
                    body = VerbatimBody(exchange, upload, source, self._lanes, observer)
                    await body.prepare(self._route)
                    await self._send(exchange, matched, body)

    async def _send_reencoded(
        self, exchange: Exchange, matched: RouteMatch, source: ReceivedBody, boundary: bytes | None, upload: Transfer
    ) -> None:
        reader = self._lanes.read_body(upload, source)
        body = ReencodedBody(BodyFiles(exchange, matched, self._config, self._factories, upload, reader=reader))
        async with body:
            # The beginning of the body decides the head, so it is read before an endpoint is connected.
            exchange.send_continue()
            await body.prepare(boundary, needs_length=self._upstream.framing == "length_required")
            await self._send(exchange, matched, body)

    async def _send(self, exchange: Exchange, matched: RouteMatch, body: VerbatimBody | ReencodedBody | None) -> None:
        """Send the request and relay its response."""
        head = make_request_head(
            exchange,
            matched.path,
            host=self._config.host,
            framing=self._upstream.framing,
            shape=body.shape if body is not None else None,
        )
        response = await self._upstream.send(
            head, body, on_endpoint=exchange.record_endpoint, on_connected=exchange.record_connected
        )
        async with response:
            headers = body.response_headers() if body is not None else ()
            await relay(
                exchange, response, self._response_policies, self._lanes, upload=exchange.upload, headers=headers
            )

    def _wait_for_slot(self, exchange: Exchange) -> None:
        """Charge what follows to the queue, if there is no free slot."""
        if self._upstream.capacity.is_full:
            exchange.waits.wait_on(Leg.QUEUE)

    def _tee(self, exchange: Exchange, matched: RouteMatch) -> Tee | None:
        return self._mirror.tee(exchange, matched) if self._mirror is not None else None

    def _must_reencode(self, boundary: bytes | None) -> bool:
        """Return whether a body cannot go upstream byte for byte; `boundary` is None where it is no form."""
        if self._has_transforms:
            return True
        return self._config.body == "multipart" if boundary is None else self._must_reencode_forms
