"""The mesh and the one table that places logical axes on it. Knows no model."""
