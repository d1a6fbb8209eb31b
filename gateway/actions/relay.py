"""An upstream's response to the client, as it flows. Shared by forward and fetch."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.actions.policies import ResponsePolicies
from gateway.downstream import ClientResponse, Exchange
from gateway.errors import Outcome
from gateway.http.headers import Header, encode_lines, response_lines
from gateway.transfer import LaneName, Lanes, Transfer, WholeTransfer
from gateway.upstream import UpstreamResponse


async def relay(
    exchange: Exchange,
    response: UpstreamResponse,
    policies: ResponsePolicies,
    lanes: Lanes,
    *,
    upload: Transfer | WholeTransfer | None = None,
    headers: Sequence[Header] = (),
) -> None:
    """Send an upstream's response to the client, with further `headers`.

    An upload that is still under way when the response is whole has the outcome `early_response`. Raises Fault; what
    the client received has to be cut then.
    """
    policy = policies.endless if response.body_length is None else policies.sized
    lines = response_lines(response.headers, exchange.trace) + encode_lines(headers)
    small = response.take_small() if upload is None or (upload.is_whole and upload.fault is None) else None
    if small is None or exchange.is_client_gone:
        with exchange.begin_download(policy, response, response.body_length) as download:
            await _pump(exchange, response, lines, download=download, upload=upload, lanes=lanes)
    elif exchange.send_whole(response.status, response.reason, lines, small, response.length):
        exchange.count_download(policy, len(small), LaneName.COPY)
    else:
        with exchange.begin_download(policy, response, response.body_length) as download:
            download.count_whole(len(small))
            if exchange.response is not None:
                await wait_sent(download, exchange.response)
    if isinstance(upload, Transfer) and not upload.is_whole:
        upload.end(Outcome.EARLY_RESPONSE)


async def wait_sent(download: Transfer, sink: ClientResponse) -> None:
    """Wait until the client has taken a response that was written whole. Raises Fault, also for one that stalls."""
    with download.watched(sink.acknowledged):
        download.meter.wait_on(download.policy.write_leg)
        await sink.end()


async def _pump(
    exchange: Exchange,
    response: UpstreamResponse,
    lines: bytes,
    *,
    download: Transfer,
    upload: Transfer | WholeTransfer | None,
    lanes: Lanes,
) -> None:
    """Send a response whose body is not here, or not small."""
    sink = exchange.begin_response(response.status, response.reason, lines, response.length, is_ready=response.is_ready)

    async def send_end() -> None:
        if upload is not None and upload.fault is not None:
            # The upstream gave up because the request body broke off: its response must not look complete.
            raise upload.fault
        await sink.end()

    await lanes.pump(download, response, sink, send_end)
