"""Coinbase Exchange: its wire messages and its live streams."""
