"""Stage two at work: prompts of a frozen student learn from the rows of a label store.

It holds the objective of a step, the exact gradient in bounded memory, and the trainer. It does not know how the labels
were taught.

May import: core, towers, heads, models, rows, recipe, losses.
Begin with: `trainer` (a run), then `objective` (what a step minimises) and `two_pass` (its gradient).
"""
