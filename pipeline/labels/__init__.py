"""The label store: what a teacher said about every image, compressed, checksummed, and committed chunk by chunk.

It holds the codec, the format, the ledger of commits, and the ways to create, derive and select. It does not know who
computes the labels.

May import: core, objects, watching, data, models, keeping.
Begin with: `store` (open, read, write and commit a chunk), then `ledger` (what makes a chunk exist) and `format`.
"""
