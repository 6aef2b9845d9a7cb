"""Records to examples to batches. Knows no model."""
