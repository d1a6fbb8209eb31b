"""Filters: what sees every chunk of a body on its way (the interface is `gateway.transfer.Filter`)."""

from gateway.filters.limit import BodyLimit

__all__ = ["BodyLimit"]
