"""Schemas of data sets: types, TOML parsing, checks, and the schemas that ship with the package."""
