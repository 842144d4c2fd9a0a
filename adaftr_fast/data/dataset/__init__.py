"""Prepared folders: manifest, vocabulary, one file per split and shard, and the loader that reads
them in batches.
"""
