"""The fault campaign: random faults of clients, upstreams and disks, over all actions and lanes, from a seed.

plans       what one exchange does, and what may come of it
clients     the client of an exchange
upstreams   the upstream of an exchange, found by its X-Request-Id
run         batches of exchanges on one gateway, and the checks after each
compare     single faults against the gateway, nginx, HAProxy and Envoy
"""
