"""Header lines of the plainest form, which are divided without a parser. Pure.

`whole_request` and `whole_response` read heads of these lines at a glance: no line can be read in two ways, and none
exceeds what the parser allows. Patterns only, no function between them and a head: both are read once per exchange.
"""

from __future__ import annotations

import re
from typing import Final

#: Below the parser's limits of one line and of the number of lines.
MAX_HEAD_BYTES: Final = 8000
MAX_HEADERS: Final = 64
#: One or more lines of a head, up to its end (RFC 9110 sections 5.1 and 5.5). Possessive: one pass.
LINES: Final = rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++: (?![ \t\r])[\t\x20-\x7e\x80-\xff]++(?<![ \t])\r\n)++)\r\n"
#: Divides them into name and value.
HEADER: Final = re.compile(rb"([^:]++): ([^\r]++)\r\n")
#: A Content-Length.
LENGTH: Final = re.compile(rb"[0-9]{1,9}")
#: Names that leave a head to the parser. llhttp reads Proxy-Connection as Connection, and aiohttp refuses the last.
JUDGED_BY_PARSER: Final = frozenset({b"transfer-encoding", b"upgrade", b"proxy-connection", b"sec-websocket-key1"})
