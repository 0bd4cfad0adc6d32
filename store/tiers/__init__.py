"""The tiers that candles are read through: process memory, disk, and behind them the database and the archive."""
