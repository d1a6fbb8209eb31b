"""The operations port: metrics and health checks."""

from gateway.ops.app import OpsApp

__all__ = ["OpsApp"]
