"""From raw values to embedding ids: counts, groups, encoders."""
