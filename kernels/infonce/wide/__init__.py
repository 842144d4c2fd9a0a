"""The row side of InfoNCE in half types beyond 256, up to 512, on sm_90 (config.py, ``five_products``).

    bounded_sweep.py   2 products: rows whose logits are bounded
    anchor_sweep.py    2 products, after the row sweep's one: other rows

The package above defines shapes and names.
"""
