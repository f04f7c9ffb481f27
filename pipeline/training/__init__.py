"""Stage two at work: prompts of a frozen student learn from the rows of a label store.

It holds the configuration, the candidates of a step, the targets, the losses, the exact gradient in bounded memory, and
the trainer. It does not know how the labels were taught.

May import: core, towers, models, rows.
Begin with: `config` (what may vary), then `trainer` (a run) and `objective` (what a step minimises) with `losses`.
"""
