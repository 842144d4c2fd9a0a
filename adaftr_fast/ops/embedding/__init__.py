"""The multi-field embedding: look-up, bags, and the optimizer steps on the rows of a batch."""
