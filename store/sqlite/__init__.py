"""The embedded store: one SQLite file, no other service."""
