"""Reads raw logs: text, parquet, Ali-CCP's format, bad rows, schema
inference.
"""
