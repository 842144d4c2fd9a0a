"""Generates impression logs of any size with known probabilities, from a seed."""
