"""Metrics over answers, and the report that shows them."""
