"""Bybit: its wire messages and its live streams."""
