"""Training: the trainer, its steps, optimizers and schedule, evaluation, metrics and reports."""
