"""The frozen towers of a CLIP model, run exactly with prompts in them.

The room knows blocks, tokens and slots. It neither loads models nor learns prompts.

May import: no other room.
Begin with: `slots` (what prompts are to a tower) and `structures` (which of them go where), then `text_tower`, behind
which `causal_text` and `whole_text` run, and `image_tower`, which takes apart the vision transformers of several
libraries (`image_backbone`).
"""
