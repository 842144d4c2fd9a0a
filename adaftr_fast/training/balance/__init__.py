"""Balances the tasks of any model: weights their losses, or combines the gradients of each task.

Shapes: T tasks.
"""
