"""Runs: training a model, the model that is left, starting from one, and going on day by day."""
