"""The rules of HTTP: headers, routing, framing, chunked coding, limits. Pure: no await, no I/O, no aiohttp."""
