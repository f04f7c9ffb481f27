"""Losses and what they are computed over, as pure functions of tensors.

The room holds the candidates of a step, the teacher's targets over them, the losses of rows, the divergences that a
soft loss may be, and what keeps classes that training never sees. It knows neither configs nor stores nor towers.

May import: core.
Begin with: `row_losses` (what a row costs), then `divergences` (how far from the teacher), `targets` (the teacher's
side), `candidates` (over which classes) and `regularisers` (what keeps other classes).
"""
