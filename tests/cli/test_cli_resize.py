"""`--set resize=tensor` reaches the stages that make or plan a store; another word is refused with both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import stage_stubs

LINES = ("teach m --labels x.zarr --teacher T", "plan m --labels x.zarr --teacher T")


@pytest.mark.parametrize("line", LINES)
def test_who_resizes_reaches_the_stage(line: str, teachonce_here: Callable[..., Any], stubs: stage_stubs.Stubs) -> None:
    for options, wanted in (
        ((), "pillow"),
        (("--set", "resize=tensor"), "tensor"),
        (("--set", "resize=pillow"), "pillow"),
    ):
        assert teachonce_here(*line.split(), *options).code in (0, 5)
        request = stubs.requests[-1]
        assert getattr(request, "teach", request).kept.resize == wanted
    ended = teachonce_here(*line.split(), "--set", "resize=gpu")
    assert ended.code == 2 and "resize" in ended.err and "pillow" in ended.err and "tensor" in ended.err
