"""The operations port: metrics, health checks, the drain that a preStop hook asks for, the API and the live page."""

from gateway.ops.port import serve_ops
from gateway.ops.view import ConfigInForce, OpsView, Readiness

__all__ = ["ConfigInForce", "OpsView", "Readiness", "serve_ops"]
