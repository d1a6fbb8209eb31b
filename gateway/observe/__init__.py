"""What operators see: counters in plain numbers, their Prometheus exposition, the log."""
