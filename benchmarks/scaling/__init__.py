"""What a step takes on several ranks: calculated from bytes, flops and rates, and checked on this machine."""
