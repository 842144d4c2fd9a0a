"""Functions for the whole path from raw logs to scores: prepare, train, evaluate, export, predict,
load_run.
"""
