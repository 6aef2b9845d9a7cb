"""How each row of the table is measured, a file a topic."""
