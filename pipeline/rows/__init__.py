"""The input of stage two: rows of a label store, decoded once into memory-mapped arrays, in the order that a run needs.

It builds and shares working sets, orders samples by seed and step, and proves that labels, features and images of a row
belong together. It does not know losses.

May import: core, data, models, labels.
Begin with: `working_set` (what a run opens), then `order` (which rows make a step), `resident` (how they come to the
device) and `pairing` (the proof that the columns of a row belong together).
"""
