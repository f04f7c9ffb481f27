"""What other people get: exports with a model card, class weights, packs of label stores, a model with open_clip's
interface.

It writes nothing that it has not read back and compared.

May import: core, objects, data, towers, models, labels, recipe, evaluation, runs.
Begin with: `facts` (what an export says of a run), then `packing` and `adapter`.
"""
