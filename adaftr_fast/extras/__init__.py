"""What needs a package or a service of its own. The core does not import it: ``api`` and ``cli``
hand in what the core needs of it.
"""
