"""A streaming reverse-proxy gateway, made to run as a sidecar in front of ML services with large files."""

__version__ = "0.1.0"

#: The gateway's name in Via, Proxy-Status and Server headers.
PSEUDONYM = "streaming-gateway"
