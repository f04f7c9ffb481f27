"""Tables, sentences, plots and the page that show what a folder of runs found.

The room computes what a reader sees from finished runs, and writes HTML, CSV and SVG.

May import: core, data, models, labels, rows, recipe, evaluation, runs.
Begin with: `folder` (what is reported), then `tables` and `page`.
"""
