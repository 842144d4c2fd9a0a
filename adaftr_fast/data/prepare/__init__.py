"""From raw logs to a prepared folder: the run, its stages, the barrier between shards, the work folder."""
