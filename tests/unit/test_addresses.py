"""Public addresses: the table, beside those of the interpreter."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from gateway.upstream.addresses import SPECIAL_IPV4, SPECIAL_IPV6, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "192.0.0.9",
        "100.64.0.1",
        "198.18.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:168.63.129.16",
        "::127.0.0.1",
        "::1.1.1.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "4000::1",
    ],
)
def test_private_and_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2a00::1"])
def test_global_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="localhost"):
        is_public("localhost")


def edges() -> Iterator[str]:
    """Yield the addresses at both edges of every network in the table and in those of the interpreter."""
    networks = [ipaddress.ip_network(network) for network, _ in (*SPECIAL_IPV4, *SPECIAL_IPV6)]
    for constants in (ipaddress._IPv4Constants, ipaddress._IPv6Constants):  # type: ignore[attr-defined]  # no public name
        for value in vars(constants).values():
            networks += [value] if hasattr(value, "network_address") else value if isinstance(value, list) else []
    for network in networks:
        first, last = int(network.network_address), int(network.broadcast_address)
        kind = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
        for number in (first - 1, first, last, last + 1):
            if 0 <= number < 1 << network.max_prefixlen:
                yield str(kind(number))


def test_no_address_is_public_that_the_interpreter_takes_for_private() -> None:
    count = 0
    for address in edges():
        ip = ipaddress.ip_address(address)
        inner = getattr(ip, "ipv4_mapped", None) or ip
        count += 1
        if not inner.is_global or inner.is_multicast or inner.is_reserved:
            # 64:ff9b::/96 counts as reserved: here the address within decides.
            assert not is_public(address) or ip in ipaddress.ip_network("64:ff9b::/96"), address
    assert count > 100
