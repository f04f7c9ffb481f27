"""Stage one at work: a frozen teacher looks at every image once, and its top-k soft labels go to a label store.

The room holds the task that computes one chunk, the models that a worker keeps, and the driver's delivery of chunks. It
does not know training.

May import: core, objects, watching, data, models, keeping, labels, cluster, softening.
Begin with: `chunk` (the task), then `delivery` (who hands tasks out) and `teacher` (logits to soft labels).
"""
