"""Checks that no two ports of the gateway overlap, and that no upstream is the gateway itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any, Final

from gateway.config.document import KeyPath
from gateway.config.model import Config, Ops
from gateway.config.values import Address, parse_address, parse_endpoint

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

_LISTEN: Final = Config.keys["listen"].default
_OPS_LISTEN: Final = Ops.keys["listen"].default
#: The system chooses the port, and another one for each socket.
_ANY_PORT: Final = 0


def check_addresses(tree: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield overlaps of `listen` with `ops.listen` and with endpoints. Values of the wrong type are skipped."""
    ops = tree.get("ops")
    listen = _address(tree.get("listen", _LISTEN))
    ops_listen = _address(ops.get("listen", _OPS_LISTEN) if isinstance(ops, dict) else _OPS_LISTEN)
    if listen is None:
        return
    if ops_listen is not None and _do_listeners_overlap(listen, ops_listen):
        yield (
            ("ops", "listen"),
            f"{str(ops_listen)!r} overlaps listen ({listen}): choose another port for one of them",
        )
    upstreams = tree.get("upstreams")
    for name, upstream in (upstreams if isinstance(upstreams, dict) else {}).items():
        endpoints = upstream.get("endpoints") if isinstance(upstream, dict) else None
        for index, endpoint in enumerate(endpoints if isinstance(endpoints, list) else []):
            address = _endpoint_address(endpoint)
            if address is not None and _may_reach(address, listen):
                yield (
                    ("upstreams", name, "endpoints", index),
                    f"{endpoint!r} is the gateway itself (listen: {listen}), requests would go in a circle: "
                    "give the address of the service",
                )


def _do_listeners_overlap(one: Address, other: Address) -> bool:
    if not _is_same_port(one, other):
        return False
    pairs = [(mine, theirs) for mine in _ips(one.host) for theirs in _ips(other.host)]
    return one.host == other.host or any(_covers(mine, theirs) or _covers(theirs, mine) for mine, theirs in pairs)


def _may_reach(endpoint: Address, listen: Address) -> bool:
    """Return whether the endpoint is certainly this machine, and its port that of `listen`."""
    if not _is_same_port(endpoint, listen):
        return False
    # A connection to 0.0.0.0 reaches this machine, too.
    own = [ip for ip in _ips(endpoint.host) if ip.is_loopback or ip.is_unspecified]
    is_covered = any(_covers(listening, ip) for ip in own for listening in _ips(listen.host))
    return endpoint.host == listen.host or is_covered


def _is_same_port(one: Address, other: Address) -> bool:
    return one.port == other.port != _ANY_PORT


def _covers(listening: _Ip, ip: _Ip) -> bool:
    """Return whether a socket that listens on one address gets connections to the other; [::] gets those of IPv4."""
    return listening == ip or (listening.is_unspecified and ip.version <= listening.version)


def _ips(host: str) -> list[_Ip]:
    if host.lower() == "localhost":
        return [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        # A name: only the system can say what it stands for.
        return []


def _address(value: object) -> Address | None:
    try:
        return parse_address(value)
    except ValueError:
        return None


def _endpoint_address(value: object) -> Address | None:
    try:
        endpoint = parse_endpoint(value)
    except ValueError:
        return None
    return Address(endpoint.host, endpoint.port)
