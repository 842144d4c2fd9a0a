"""The paper's tables and figures, from many runs."""
