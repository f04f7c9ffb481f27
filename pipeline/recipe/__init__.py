"""What a training is asked for: every key of its configuration, with its range, its source and its limits.

The room reads and writes configs and says what they need of a store. It does not train.

May import: core, heads, models.
Begin with: `config` (all tables together), then `loss_table`, `head_table` and `tables` (the keys), `config_file` (as
people write them) and `requirements` (what a store must hold).
"""
