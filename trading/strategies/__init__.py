"""Strategies that come with Chandlery; each module holds one, and the module's name is the strategy's name."""
