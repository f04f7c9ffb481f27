"""What a label store tells of its data and its teacher: wrong labels, duplicates, bias, drift; no model runs.

The room compares labels, vectors and the teacher's probabilities with each other, lists what it finds, and lays out the
page of an audit.

May import: core, data, labels, evaluation, reports.
Begin with: `evidence` (what is gathered), then `wrong_labels` and `findings`.
"""
