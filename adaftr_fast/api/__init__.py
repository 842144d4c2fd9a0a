"""The whole road from raw logs to scores as functions: prepare, train, evaluate, export, predict, load_run."""
