"""Command-line entry points: flags to a config to one call. Heavy imports stay inside `main`."""
