"""The names of the rules by which rows weigh teachers, for code that need not load torch."""

from __future__ import annotations

from typing import Literal

RowRule = Literal["equal", "confidence", "entropy", "margin"]
"""equal: the same in every row. confidence: the best name's probability. entropy: exp(-H), one over the number of names
that a teacher hesitates between. margin: the best name's probability minus the second's."""
