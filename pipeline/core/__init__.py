"""Tools that every room needs and that know nothing of CLIP, label stores or training.

It holds strict tables, files and folders that appear whole, checksums, locks, signals, remote paths, progress,
the words for states, and facts of the machine.

May import: nothing but errors.
Begin with: `files` (how a write survives a crash), then `strict` (how a table becomes a dataclass).
"""
