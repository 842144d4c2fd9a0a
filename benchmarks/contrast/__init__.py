"""A study: how many rows the contrast needs, and what its temperature does then."""
