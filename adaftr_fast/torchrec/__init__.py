"""Tables across ranks by TorchRec, an optional back end (docs/scaling.md)."""
