"""The stages. Each has ``LIMIT``, the most seconds of one cell, and ``cells(setting)``."""
