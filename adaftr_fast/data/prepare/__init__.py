"""Turns raw logs into prepared folders: the run, its stages, the barrier between shards, the work folder."""
