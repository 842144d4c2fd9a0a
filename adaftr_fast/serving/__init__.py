"""Serving: exports a trained model without its training-only parts, and scores raw rows with it."""
