"""Two candle stores as one: the primary decides, the secondary follows."""
