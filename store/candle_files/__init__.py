"""Candle files from outside (import) and for outside (export)."""
