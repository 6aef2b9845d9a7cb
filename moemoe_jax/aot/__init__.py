"""Ahead of time: the real programs, compiled for chips that this machine does not have."""
