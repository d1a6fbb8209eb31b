"""The ops port: metrics and health, never on the traffic port."""

from gateway.ops.app import OpsApp

__all__ = ["OpsApp"]
