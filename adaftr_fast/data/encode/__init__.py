"""Encodes raw values as embedding ids: value counts, groups, encoders."""
