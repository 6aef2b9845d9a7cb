"""Measured side by side with PyTorch peers: `python -m benchmarks.run` prints the table."""
