"""Which addresses are public: a table of our own, since that of `ipaddress` differs between versions of Python. Pure.

Python 3.11.7 takes 192.0.0.0/24 for public in part, all versions take 3fff::/20, 5f00::/16 or cloud metadata at
168.63.129.16 for public. Sources: the IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890, as of
2025-10), multicast (RFC 5771, RFC 4291), and the documentation of clouds for metadata addresses.

Stricter than the registries, where an address is "globally reachable" and still no host that one would fetch from:
192.0.0.0/24, 2001::/23 and 192.88.99.0/24 are refused as a whole.
"""

from __future__ import annotations

import ipaddress
from typing import Final

#: Not public, and why.
SPECIAL_IPV4: Final = (
    ("0.0.0.0/8", "this network, RFC 791"),
    ("10.0.0.0/8", "private use, RFC 1918"),
    ("100.64.0.0/10", "shared address space, RFC 6598; metadata of Alibaba Cloud is 100.100.100.200"),
    ("127.0.0.0/8", "loopback, RFC 1122"),
    ("168.63.129.16/32", "metadata and agent of Azure"),
    ("169.254.0.0/16", "link-local, RFC 3927; metadata of most clouds is 169.254.169.254"),
    ("172.16.0.0/12", "private use, RFC 1918"),
    ("192.0.0.0/24", "IETF protocol assignments, RFC 6890; metadata of Oracle Cloud is 192.0.0.192"),
    ("192.0.2.0/24", "documentation, RFC 5737"),
    ("192.88.99.0/24", "6to4 relays, RFC 7526"),
    ("192.168.0.0/16", "private use, RFC 1918"),
    ("198.18.0.0/15", "benchmarking, RFC 2544"),
    ("198.51.100.0/24", "documentation, RFC 5737"),
    ("203.0.113.0/24", "documentation, RFC 5737"),
    ("224.0.0.0/4", "multicast, RFC 5771"),
    ("240.0.0.0/4", "reserved and limited broadcast, RFC 1112 and RFC 8190"),
)
#: Only 2000::/3 is global unicast (RFC 4291 section 2.4); what lies outside of it is listed for the reader.
SPECIAL_IPV6: Final = (
    ("::/8", "unspecified, loopback and IPv4-compatible, RFC 4291; IPv4-mapped is judged as IPv4"),
    ("64:ff9b:1::/48", "local NAT64, RFC 8215; 64:ff9b::/96 is judged as the IPv4 address within, RFC 6052"),
    ("100::/64", "discard only, RFC 6666"),
    ("100:0:0:1::/64", "dummy prefix, RFC 9780"),
    ("2001::/23", "IETF protocol assignments, RFC 2928: Teredo, benchmarking, ORCHID, AMT and others"),
    ("2001:db8::/32", "documentation, RFC 3849"),
    ("2002::/16", "6to4, RFC 3056"),
    ("3fff::/20", "documentation, RFC 9637"),
    ("5f00::/16", "segment routing identifiers, RFC 9602"),
    ("fc00::/7", "unique local, RFC 4193; metadata of AWS is fd00:ec2::254, of Google Cloud fd20:ce::254"),
    ("fe80::/10", "link-local, RFC 4291"),
    ("fec0::/10", "site-local, RFC 3879"),
    ("ff00::/8", "multicast, RFC 4291"),
)

_IPV4: Final = tuple(ipaddress.IPv4Network(network) for network, _ in SPECIAL_IPV4)
_IPV6: Final = tuple(ipaddress.IPv6Network(network) for network, _ in SPECIAL_IPV6)
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
#: Networks whose addresses end in the IPv4 address that is connected to.
_EMBEDDED: Final = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))


def is_public(text: str) -> bool:
    """Return whether an address, perhaps with a zone, is a public unicast address. Raises ValueError if it is none."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if not any(address in network for network in _EMBEDDED):
            return address in _GLOBAL_UNICAST and not any(address in network for network in _IPV6)
        address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return not any(address in network for network in _IPV4)
