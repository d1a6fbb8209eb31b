"""Observability: statistics as plain numbers, their Prometheus exposition, and the log."""
