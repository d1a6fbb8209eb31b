"""HTTP rules as decisions: headers, routing, framing, chunked coding, ranges. Pure: no await, no I/O, no aiohttp."""
