"""The memory in PostgreSQL, with TimescaleDB where the server has it."""
