"""Redis, one node or a cluster: shared values, the live market between processes, invalidation."""
