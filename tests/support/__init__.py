"""What several folders of tests share: made-up candles, real servers and processes, proofs over a store."""
