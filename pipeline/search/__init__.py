"""What a search over settings declares: what a grid may vary, splits of classes, evaluations, and how to choose.

Everything here is a table of keys or a pure function: the room opens no store, runs no model and writes no file.

May import: core, data.
Begin with: `tables` (what the file of a grid may say), then `splits`.
"""
