"""The keys of an upstream, as `model` has the others."""

from __future__ import annotations

import math
from typing import Literal

from gateway.config.section import Section, UrlPath, config_key
from gateway.config.values import EndpointUrl, Percent, Seconds, Size

Policy = Literal["round_robin", "least_requests", "random_two"]
FramingMode = Literal["auto", "length_required", "chunked"]


class UpstreamTimeouts(Section):
    """Time limits for each step of an upstream request."""

    connect: Seconds = config_key(
        2.0, description="Limit for name lookup, TCP and TLS handshake together, for each endpoint tried."
    )
    response: Seconds = config_key(
        60.0,
        description="Limit from the end of the request body to the first byte of the response head: the time in which "
        "a model computes.",
    )
    idle: Seconds = config_key(
        60.0,
        description="Limit for a pause in which the upstream moves no byte while the gateway waits for it: it sends "
        "none, or its kernel acknowledges none, as while a worker is busy and does not read.",
    )


class Health(Section):
    """Active health checks: GET `path` on every endpoint; a response with a 2xx or 3xx status passes."""

    path: UrlPath = config_key(description="Request target of the health check.")
    interval: Seconds = config_key(5.0, description="Time between two checks of one endpoint.")
    timeout: Seconds = config_key(
        2.0, description="Limit for a whole check, from connecting to the end of the response."
    )
    passes: int = config_key(
        1, ge=1, description="Checks that must pass in a row before an endpoint counts as up again."
    )
    fails: int = config_key(2, ge=1, description="Checks that must fail in a row before an endpoint counts as down.")


class Ejection(Section):
    """Passive health: an endpoint whose requests fail in a row gets none for a while.

    A failure is an endpoint that cannot be connected, gives no response or not all of it, within its timeouts, or
    responds with 502, 503 or 504. Any other response ends the row, 500 included: services give it to input they cannot
    handle. What a client breaks off, what the gateway refuses, and a kept connection that the upstream has closed are
    not counted. The last healthy endpoint is never ejected. An endpoint takes requests if its health checks pass and it
    is not ejected; one that its health checks bring up again is readmitted at once. A reload changes nothing for
    endpoints that stay.
    """

    failures: int = config_key(5, ge=1, description="Requests that must fail in a row before an endpoint is ejected.")
    duration: Seconds = config_key(
        30.0,
        description="Time an endpoint is ejected. The next ejection is longer by as much, up to 10 times, less one for "
        "each `duration` that the endpoint was not ejected.",
    )
    max_percent: Percent = config_key(
        0.5,
        description="Endpoints that may be ejected at the same time, in percent of all, so that the others are not "
        "overloaded; one may be in any case.",
    )


class Retries(Section):
    """Requests sent a second time because their connection ended without a byte of a response.

    Only requests with an idempotent method (GET, HEAD, OPTIONS, TRACE, PUT, DELETE, QUERY) whose body, if there is one,
    is at most 64 KiB and was sent whole; never a POST. They go to another endpoint. Responses with an error status and
    timeouts are passed to the client. These keys do not limit what comes first: an endpoint that cannot be connected is
    passed over for the next, each once, since nothing was sent; and a request on a kept connection that the upstream
    has closed meanwhile is sent again once, on a new connection.
    """

    attempts: int = config_key(
        2,
        ge=0,
        description="How often a request may be sent again; 0 for never. Each goes to an endpoint not tried yet.",
    )
    budget: Percent = config_key(
        0.2,
        description="Requests that may be sent again in proportion to all requests of the upstream, so that retries do "
        "not overload one that fails; 10 per second are allowed in any case. 0% for none.",
    )


class Upstream(Section):
    """A named service and its endpoints."""

    endpoints: tuple[EndpointUrl, ...] = config_key(
        min_length=1,
        description="URLs of the service, http:// or https://, without a path (`rewrite` of the route sets the path).",
    )
    policy: Policy = config_key("round_robin", description="How the endpoint of the next request is chosen.")
    timeouts: UpstreamTimeouts = config_key(
        UpstreamTimeouts(), description="Time limits for each step of a request to this upstream."
    )
    framing: FramingMode = config_key(
        "auto",
        description="How request bodies are framed. `auto`: Content-Length if the length is known, chunked otherwise. "
        "`length_required`: Content-Length, or 411 for the client if the length is not known, for WSGI servers that do "
        "not read chunked bodies. `chunked`: always chunked.",
    )
    health: Health | None = config_key(
        None, description="Active health checks. Without this section every endpoint counts as up."
    )
    ejection: Ejection | None = config_key(
        None, description="Passive health: which endpoints get no requests for a while. Default: none."
    )
    retries: Retries = config_key(
        Retries(), description="Which requests are sent a second time when an endpoint fails without a response."
    )
    max_in_flight: Size = config_key(
        math.inf,
        gt=0,
        description="Exchanges with this upstream at the same time; further ones wait in a queue. Set it to the "
        "concurrency of the model server.",
    )
    max_queued: int = config_key(
        100, ge=0, description="Exchanges that may wait in the queue; further ones get 503 immediately."
    )
    queue_timeout: Seconds = config_key(
        10.0, description="Limit for the wait in the queue; after it the client gets 503."
    )
