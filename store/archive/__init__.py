"""The Parquet archive: closed candles, one file per series and period, found through a manifest."""
