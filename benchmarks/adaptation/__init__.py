"""A study: what an adaptive contrast could act on, beside the temperature of Eq. 12."""
