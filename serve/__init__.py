"""The store over HTTP: routes by noun, one table of errors, and encoders that are pure functions."""
