"""The memory: candles, their coverage and history, in SQLite and in a Parquet archive, read in one way."""
