"""Bodies in flight: one `Transfer` per body and direction, and the lanes that move its bytes.

`pump` is the loop, `lanes` and `sendfile` where it reads and writes, `meter` counts and charges, `stall` finds what is
too slow, `turns` shares the event loop between them. A small body that is passed on in one step is a `WholeTransfer`.
"""

from gateway.transfer.exhaustion import descriptor_fault, exhaustion_fault
from gateway.transfer.interface import AsyncFilter, Filter, Source
from gateway.transfer.keepalive import open_socket, set_keepalive
from gateway.transfer.lanes import BodyReader, LaneName, Lanes
from gateway.transfer.policy import LegLimits, TransferPolicy
from gateway.transfer.progress import Progress, acknowledged_bytes, no_progress
from gateway.transfer.pump import Transfer
from gateway.transfer.raw_body import ChunkedRawBody, RawBody, SizedRawBody
from gateway.transfer.raw_socket import MAX_LARGE_BYTES, RawSocket, open_raw_socket
from gateway.transfer.timers import TimerQueue, Timers
from gateway.transfer.turns import Turns
from gateway.transfer.whole import WholeTransfer

__all__ = [
    "MAX_LARGE_BYTES",
    "AsyncFilter",
    "BodyReader",
    "ChunkedRawBody",
    "Filter",
    "LaneName",
    "Lanes",
    "LegLimits",
    "Progress",
    "RawBody",
    "RawSocket",
    "SizedRawBody",
    "Source",
    "TimerQueue",
    "Timers",
    "Transfer",
    "TransferPolicy",
    "Turns",
    "WholeTransfer",
    "acknowledged_bytes",
    "descriptor_fault",
    "exhaustion_fault",
    "no_progress",
    "open_raw_socket",
    "open_socket",
    "set_keepalive",
]
