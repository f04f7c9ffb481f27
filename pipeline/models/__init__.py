"""Frozen CLIP models, and the prompts of one.

The room loads models through open_clip, holds what is learned of prompts, and reads and writes the two files that keep
them. It does not know label stores.

May import: core, data, towers, heads.
Begin with: `clip` (a loaded model) and `prompts` (what prompts are), then `learner` (what is learned of them).
"""
