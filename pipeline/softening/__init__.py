"""What is done to a teacher's answers before they become soft labels: a temperature for each row, another prior.

The modules are functions of logits and probabilities. They read no store, know no model and keep nothing.

May import: data.
Begin with: `row_temperature`, then `prior`.
"""
