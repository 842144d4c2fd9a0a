"""Experiment trackers, to which a run logs its validations."""
