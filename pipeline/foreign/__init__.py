"""Prompts that other projects have trained, read out of their checkpoints without running anything of them.

The room says what a file holds, proves which student it belongs to, and puts its prompts into the slots of our towers.
It refuses by name what cannot be represented exactly, and writes nothing.

May import: towers, models.
Begin with: `prompts` (what is read of a file), then `reading`, `contexts` and `layered` (whose files, and how).
"""
