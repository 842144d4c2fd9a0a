"""From a trained run to scores: export a model without what only training needs, and score raw rows with it."""
