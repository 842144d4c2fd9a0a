"""Engines run pure functions, one call per item, in this process or on a cluster."""
