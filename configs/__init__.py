"""Experiments: each file has `get_config(arg)`, a page of differences from a shared base."""
