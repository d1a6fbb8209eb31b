"""The operations port: metrics, health checks, and the drain that a preStop hook asks for."""

from gateway.ops.port import serve_ops
from gateway.ops.view import OpsView, Readiness

__all__ = ["OpsView", "Readiness", "serve_ops"]
