"""The number formats that a frozen tower may run in; apart, so that the command line can name them without torch."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
