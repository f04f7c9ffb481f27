"""What work would need of a GPU's memory, found without one: the work runs on tensors that have sizes and no numbers.

The room counts the bytes that are alive while a training step or a batch of stage one runs on such tensors, and says
which GPUs have room for them. It computes no numbers.

May import: data, heads, models, rows, teaching, towers, recipe, training.
Begin with: `tally` (how bytes are counted), then `step` (stage two), `batch` (stage one) and `gpus` (what fits).
"""
