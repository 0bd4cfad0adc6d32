"""The simulated exchange: a process that speaks Binance spot REST and streams on localhost."""
