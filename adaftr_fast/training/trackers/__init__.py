"""Experiment trackers: TensorBoard, Weights & Biases and MLflow, each a file with one class."""
