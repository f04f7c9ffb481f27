"""One folder a verb: `teach` leaves a label store on disk, `train` a run folder, and most others read one of the two.

A verb's `request.py` says what is asked and what is answered, its `checks.py` (where there is one) refuses what cannot
be done, and its `work.py` does the work. A stage takes a frozen request, reports through
`teachonce.core.progress.Reporter` and returns a frozen result.
"""
