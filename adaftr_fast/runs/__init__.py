"""Training runs: one run, its trained model, warm starts, daily training and the demo."""
