"""Prompts know their size, where they enter a tower, and which towers they fit."""

from __future__ import annotations

import pytest
import torch

from teachonce.errors import TeachOnceError
from teachonce.towers.slots import SlotPrompts

CONTEXT = torch.arange(12.0).view(3, 4)  # M = 3, D = 4
STACK = torch.arange(100.0, 124.0).view(2, 3, 4)  # two blocks
GOING_ON = SlotPrompts(None, STACK[:1], STACK, STACK, STACK[:1] + 1, replace=True)
ENDING = SlotPrompts(None, key=STACK, value=STACK, replace=True)


def test_slots_and_the_block_where_they_enter() -> None:
    assert SlotPrompts(CONTEXT).slots == GOING_ON.slots == ENDING.slots == 3
    assert SlotPrompts(CONTEXT, key=STACK).entry == 0
    assert GOING_ON.entry == 1 and ENDING.entry == 2
    with pytest.raises(TeachOnceError, match="need keys and values"):
        _ = SlotPrompts(None).slots


def test_carried_prompts_are_added_and_change_nothing_beyond_their_blocks() -> None:
    prompts, states = SlotPrompts(CONTEXT, key=STACK), torch.ones(5, 2, 4)
    back = slice(1, None)
    assert torch.equal(prompts.enter("key", 1, states, back), states + STACK[1, 1:])
    assert prompts.enter("key", 2, states, back) is states and prompts.enter("value", 0, states, back) is states


def test_replacing_prompts_stand_in_for_the_state_until_the_slot_goes_on() -> None:
    states = torch.ones(3, 4)
    for given in (None, states):
        assert torch.equal(GOING_ON.enter("key", 0, given), STACK[0])
        assert torch.equal(GOING_ON.enter("query", 1, given), STACK[0])
        assert torch.equal(GOING_ON.enter("residual", 1, given), STACK[0] + 1)
    assert GOING_ON.enter("key", 2, states) is states and GOING_ON.enter("query", 2, states) is states
    with pytest.raises(TeachOnceError, match="block 0 has neither .* for its query"):
        GOING_ON.enter("query", 0, None)


def test_a_change_reaches_every_tensor_and_keeps_the_kind() -> None:
    changed = GOING_ON.apply(lambda x: x.double())
    assert changed.replace and {x.dtype for x in changed.tensors().values()} == {torch.float64}
    assert sorted(changed.tensors()) == ["key", "query", "residual", "value"] and changed.context is None


def test_prompts_that_fit_pass() -> None:
    SlotPrompts(CONTEXT).require_fit(1, 4)
    SlotPrompts(CONTEXT, STACK, STACK, STACK, STACK).require_fit(3, 4)
    SlotPrompts(CONTEXT, gate=torch.zeros(3)).require_fit(3, 4, gated=True)
    GOING_ON.require_fit(3, 4)
    ENDING.require_fit(2, 4)


@pytest.mark.parametrize(
    ("prompts", "layers", "width"),
    [
        (SlotPrompts(CONTEXT), 2, 5),
        (SlotPrompts(CONTEXT, key=STACK), 1, 4),
        (SlotPrompts(CONTEXT, query=STACK), 2, 4),
        (SlotPrompts(CONTEXT, residual=STACK), 2, 4),
        (SlotPrompts(CONTEXT, value=STACK[:, :2]), 2, 4),
        (SlotPrompts(CONTEXT, gate=torch.zeros(2)), 2, 4),
        (SlotPrompts(None), 2, 4),
        (SlotPrompts(None, key=STACK, value=STACK), 2, 4),
        (GOING_ON, 2, 4),
        (ENDING, 3, 4),
        (SlotPrompts(None, key=STACK, value=STACK[:1], replace=True), 2, 4),
        (SlotPrompts(CONTEXT, key=STACK, value=STACK, replace=True), 2, 4),
        (SlotPrompts(None, replace=True), 2, 4),
    ],
)
def test_prompts_that_do_not_fit_are_refused_with_their_shapes(prompts: SlotPrompts, layers: int, width: int) -> None:
    with pytest.raises(TeachOnceError, match=f"do not fit {layers} blocks of width {width}") as problem:
        prompts.require_fit(layers, width)
    assert all(str(tuple(x.shape)) in str(problem.value) for x in prompts.tensors().values())
    with pytest.raises(TeachOnceError, match="gate"):
        SlotPrompts(CONTEXT, gate=torch.zeros(3)).require_fit(2, 4, gated=True)
