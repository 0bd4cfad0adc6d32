"""Binance spot: its wire messages, and the client parts that need them."""
