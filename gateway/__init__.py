"""A streaming reverse-proxy gateway: the sidecar in front of ML services whose files are large."""

__version__ = "0.1.0"

#: How the gateway names itself in Via, Proxy-Status and the log.
PSEUDONYM = "streaming-gateway"
