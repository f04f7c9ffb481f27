"""What prompts are worth: sets and protocols, the contenders, their scores, and statistics of the differences.

The room compares prompts with the hand-written template and with their run's linear reference on any data set, and
keeps image features in a cache. It does not know training.

May import: core, data, models, labels, rows.
Begin with: `contender` (who is scored), then `scores` and `statistics`.
"""
