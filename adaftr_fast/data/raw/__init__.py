"""Reads raw logs: text, parquet, Ali-CCP's format, staging to parquet, bad rows, schema
inference.
"""
