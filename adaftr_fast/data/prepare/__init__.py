"""Turns raw logs into prepared folders: the run, its steps, what merges their results, the work
folder.
"""
