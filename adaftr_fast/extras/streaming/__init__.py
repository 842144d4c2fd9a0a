"""Training on a log that grows: sources of chunks, and the loop that measures, trains
and exports.
"""
