"""Embedding tables sharded over ranks by TorchRec, an optional back end (docs/scaling.md)."""
