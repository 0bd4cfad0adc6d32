"""Values kept for a while: times to live, policies, one loader per key, statistics."""
