"""One file a verb, each read top to bottom like a recipe.

`teach` leaves a label store on disk, `train` leaves a run folder; every other stage reads one of the two.
A stage takes a frozen request, reports through `teachonce.core.progress.Reporter` and returns a frozen result.
"""
