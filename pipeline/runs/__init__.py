"""The folders of runs and of grids: what is written while they work, and what a reader finds there later.

It holds the log, the checkpoints, the state of runs and cells, and the choice among cells. It does not know how a
report looks.

May import: core, data, towers, models, labels, recipe, evaluation, search.
Begin with: `folder` (the files of a run), then `grid` (what a grid varies) and `reader`.
"""
