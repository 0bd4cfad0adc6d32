"""The words of the field: timeframes, intervals, instruments, candles and their rules. No I/O here."""
