"""Saving a run and resuming it: its state, snapshots, the best weights, and the exchange between ranks."""
