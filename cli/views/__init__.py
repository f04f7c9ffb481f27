"""How results look to a person in the terminal: one file for each result that is more than a table of values."""
