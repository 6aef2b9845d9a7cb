"""Hugging Face PyTorch weights, in and out."""
