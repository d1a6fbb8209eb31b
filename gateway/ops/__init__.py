"""The operations port: metrics, health checks, and the drain that a preStop hook asks for."""

from gateway.ops.app import OpsApp, Readiness

__all__ = ["OpsApp", "Readiness"]
