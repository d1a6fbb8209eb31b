"""The benchmark: the gateway and its peers on the same work in one run. `make bench`; a smoke run is in `make test`."""
