"""The stages. Each has ``DEADLINE``, its seconds in one call; ``LIMIT``, those of one cell; and ``cells(setting)``."""
