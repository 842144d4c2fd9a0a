"""Stacks of dense layers and mixtures of experts, each in one pass."""
