"""``python -m chandlery``."""

from chandlery.main import run

run()
