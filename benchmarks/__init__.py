"""Measured side by side with PyTorch peers; each prints a table."""
