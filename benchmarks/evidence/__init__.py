"""A second study of the contrast: fresh data, tuned models, and what `train` does by default."""
