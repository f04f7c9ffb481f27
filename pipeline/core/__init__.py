"""Tools that every room needs and that know nothing of CLIP, label stores or training.

It holds strict tables, documents and their digests, files and folders that appear whole, checksums, locks, random
streams, signals, progress, the words for states, and facts of the machine.

May import: no other room.
Begin with: `files` (how a write survives a crash), then `strict` (how a table becomes a dataclass).
"""
