"""Custom ops, one package per op: schema, autograd formula, plain-PyTorch reference and argument
checks.
"""
