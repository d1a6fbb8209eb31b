"""The express lane: small exchanges of `forward`, from callback to callback, without a task.

A task, its coroutines and what they wait with cost more than everything else about a small request. Here a request is
sent in the callback in which it came, and its response in the callback in which that came.

    the lane       what happens                                        where it goes on
    -------------  --------------------------------------------------  ------------------------------------------------
    declines       nothing was sent, nothing was changed               the normal path, from its beginning
    hands over     the request was sent, its response was not taken    the normal path, where it waits for the response
    hands over     the response was written, not all of it was sent    the normal path, where it waits for the client
    ends           the response was sent                               the next request of the connection

So it has the happy path only. Refusals, connections, queues, retries, interim responses, deadlines, long or slow
bodies, clients that leave, faults, drain and cancelling are the normal path's: it is entered at one of two points, with
the same `Exchange`. What is decided here, too, is decided by the functions that the normal path calls: which heads are
refused, the route, limits, headers, framing, the endpoint, slots, log line and counts.

`lane` takes messages and has the exchanges under way, `exchange` is one of them.
"""

from gateway.express.exchange import ExpressExchange, HandOver
from gateway.express.lane import Declined, ExpressLane, Host

__all__ = ["Declined", "ExpressExchange", "ExpressLane", "HandOver", "Host"]
