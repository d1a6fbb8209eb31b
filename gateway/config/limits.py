"""The limits of a route on the size of a request and on the speed of a client."""

from __future__ import annotations

import math

from gateway.config.section import Section, config_key
from gateway.config.values import Rate, Seconds, Size

_MIB, _GIB = float(2**20), float(2**30)


class Limits(Section):
    """Limits on the size of a request; the error response names the key that was exceeded."""

    max_body: Size = config_key(
        10 * _GIB, description="Bytes of a request body; protects the disk or the model that receives it."
    )
    max_parts: int = config_key(
        64, ge=1, description="Parts of a multipart body; a part costs CPU time even if it has no content."
    )
    max_part: Size = config_key(10 * _GIB, description="Bytes of one file of a form.")
    max_field: Size = config_key(_MIB, description="Bytes of one form field (a part without a file name).")
    max_held: Size = config_key(
        64 * 2.0**10,
        description="Bytes of a form before its first file that are held in memory: form fields that are sent with the "
        "file after them or choose the route, and all that comes before a file that a filter checks first (sniff).",
    )
    max_part_headers: Size = config_key(
        16 * 2.0**10, description="Bytes of the headers of one part, and of the preamble before the first part."
    )


class RouteTimeouts(Section):
    """Time limits for a client. They limit pauses and low rates, not the size of a transfer."""

    idle: Seconds = config_key(
        60.0,
        description="Limit for a pause in which the client moves no byte while the gateway waits for it: it sends "
        "none, or its kernel acknowledges none.",
    )
    min_rate: Rate = config_key(
        1024.0,
        description="Lowest rate of a client or an upstream, in bytes per second of the time in which the gateway "
        "waits for it. It is about trickling: pauses do not count, see `idle`. It does not apply to responses of "
        "unknown length.",
    )
    grace: Seconds = config_key(
        20.0,
        description="Time over which min_rate is measured, from a byte on. A pause of half of it or more ends the "
        "measurement; `off` disables min_rate.",
    )
    total: Seconds = config_key(
        math.inf, description="Limit for the duration of a transfer at any rate. Default: none, since files are large."
    )
