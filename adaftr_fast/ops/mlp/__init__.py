"""Stacks of dense layers and mixtures of experts, each computed in one pass."""
