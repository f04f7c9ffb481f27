"""Frozen CLIP models, their towers, and the prompts that enter them.

The room loads models through open_clip, runs their towers with and without prompts, and reads and writes the two files
that keep prompts. It does not know label stores.

May import: core, data.
Begin with: `clip` (a loaded model) and `prompts` (what prompts are), then `structures`, `slots` and `text_tower` (how
prompts enter it).
"""
