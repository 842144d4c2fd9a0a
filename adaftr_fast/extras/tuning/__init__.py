"""Search for options with the best validation AUC, by Optuna."""
