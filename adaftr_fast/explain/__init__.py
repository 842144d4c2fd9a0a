"""Why a model predicts what it does, and how far to trust it: importance of fields, calibration,
lift and gain.
"""
