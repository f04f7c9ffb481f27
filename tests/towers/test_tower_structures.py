"""Every prompt structure in the fast text tower equals the plain tower, and only what can learn exists."""

from __future__ import annotations

import functools
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from tower_reference import TEMPLATES, full_tokens, plain_features, plain_run, random_prompts, tiny_clip, tokenizer

from teachonce.errors import TeachOnceError
from teachonce.models.learner import replacing, text_learner
from teachonce.models.prompts import Prompts
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import REPLACING, Letter, Position, Structure, allocate
from teachonce.towers.text_tower import TextTower

STRUCTURES: tuple[Structure, ...] = get_args(Structure)
POSITIONS: tuple[Position, ...] = get_args(Position)
TEMPLATES_AT_0 = tuple(x for x in STRUCTURES if x != "accumulate")  # what can begin as a hand-written template
NAMES = ["tench", "great white shark", "jack-o'-lantern", "Boeing 747-400", "shark"]  # lengths 3, 5, 6, 7 and 3


@functools.cache
def made(kind: str) -> tuple[nn.Module, TextTower]:
    """A tiny model and its tower, made once."""
    model = tiny_clip(kind)
    return model, TextTower.from_clip(model, tokenizer())


@functools.cache
def double_tower(kind: str) -> tuple[nn.Module, TextTower]:
    """In float64, so that what is not rounding shows."""
    model = tiny_clip(kind).double()
    return model, TextTower.from_clip(model, tokenizer())


def gradients(features: Tensor, prompts: SlotPrompts) -> dict[str, Tensor]:
    """Of a fixed random direction, for every tensor of the prompts."""
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = prompts.tensors()
    gradients_of_leaves = torch.autograd.grad((features * direction.to(features.dtype)).sum(), list(leaves.values()))
    return dict(zip(leaves, gradients_of_leaves, strict=True))


def assert_equal(model: nn.Module, tower: TextTower, prompts: SlotPrompts, position: Position, bound: float) -> None:
    """Features within `bound`, every tensor's gradient within `bound` of its norm, block by block."""
    ours = tower.features(prompts, tower.tokenise(NAMES, position=position))
    theirs = plain_features(model, prompts, NAMES, position)
    assert torch.allclose(ours, theirs, rtol=0, atol=bound)
    actual, expected = gradients(ours, prompts), gradients(theirs, prompts)
    for name, reference in expected.items():
        by_block = reference.flatten(-2) if reference.ndim == 3 else reference.flatten()
        mine = actual[name].view_as(by_block)
        assert (by_block.norm(dim=-1) > 1e-4).all(), f"{name}: too small a gradient to compare"
        assert ((mine - by_block).norm(dim=-1) <= bound * by_block.norm(dim=-1)).all(), name


@pytest.mark.parametrize("structure", STRUCTURES)
def test_features_and_gradients_equal_the_plain_reference(structure: Structure) -> None:
    model, tower = double_tower("laion")
    every = structure in ("qkvr", "unshared-replace")  # the others are parts of these
    for number, depth in enumerate((0, 1, tower.layers - 1)):
        others = () if structure == "accumulate" else (POSITIONS[number],)
        for position in POSITIONS if every else ("before", *others):
            assert_equal(model, tower, random_prompts(tower, structure, depth), position, 1e-9)


@pytest.mark.parametrize("kind", ["openai", "layer_scale", "short", "custom_text", "eos", "one_block"])
def test_so_they_do_in_other_towers_and_with_other_numbers_of_slots(kind: str) -> None:
    model, tower = double_tower(kind)
    for number, structure in enumerate(STRUCTURES):
        depth = (0, 1, max(tower.layers - 1, 0))[number % 3]
        prompts = random_prompts(tower, structure, depth, slots=1 + number % 5)
        position = "before" if structure == "accumulate" else POSITIONS[(number // 3) % 3]
        assert_equal(model, tower, prompts, position, 1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_in_float32_they_are_equal_to_1e_5(structure: Structure) -> None:
    model, tower = made("openai")
    for number, position in enumerate(POSITIONS if structure != "accumulate" else ("before",)):
        assert_equal(model, tower, random_prompts(tower, structure, (0, 2, 1)[number]), position, 1e-5)


@pytest.mark.parametrize("kind", ["laion", "openai"])
@pytest.mark.parametrize("structure", TEMPLATES_AT_0)
def test_step_zero_is_the_hand_written_template(structure: Structure, kind: str) -> None:
    model, tower = made(kind)
    positions = POSITIONS[:1] if structure in REPLACING else POSITIONS
    for position in positions:
        theirs = model.encode_text(full_tokens(model, NAMES, TEMPLATES[position]), normalize=True)  # type: ignore[operator]
        for depth in range(tower.layers + 1):
            learner = text_learner(tower, Prompts(structure=structure, depth=depth, position=position))
            features = tower.features(learner(), tower.tokenise(NAMES, position=position))
            assert torch.allclose(features, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_block_letter_and_slot_gets_a_gradient(structure: Structure) -> None:
    for kind in ("laion", "one_block"):
        _, tower = made(kind)
        positions = POSITIONS if structure != "accumulate" else ("before", "before", "before")
        for depth, position in zip((0, 1, tower.layers - 1), positions, strict=True):
            asked = Prompts(structure=structure, depth=depth, position=position, init="words", length=5)
            learner = text_learner(tower, asked)
            with torch.no_grad():
                for number, parameter in enumerate(learner.parameters()):
                    parameter.normal_(generator=torch.Generator().manual_seed(number)).mul_(0.3)
            features = tower.features(learner(), tower.tokenise(NAMES, position=position))
            (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
            for name, parameter in learner.named_parameters():
                assert parameter.grad is not None, name
                assert (parameter.grad.norm(dim=-1) > 1e-6).all(), f"{name}: {parameter.grad.norm(dim=-1)}"


@pytest.mark.parametrize("position", POSITIONS)
def test_what_is_not_allocated_is_dead(position: Position) -> None:
    """The plain tower with every letter in every block and a context: exactly the allocated ones get a gradient."""
    model, tower = double_tower("laion")
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    for structure in ("qkvr", "unshared-replace"):
        for depth in range(1, tower.layers + 1):
            allocation = allocate(structure, tower.layers, depth)
            context = leaf(4, tower.width)
            stacks: dict[Letter, Tensor] = {x: leaf(depth, 4, tower.width) for x in get_args(Letter)}
            letters: dict[str, dict[int, Tensor]] = {x: dict(enumerate(stack)) for x, stack in stacks.items()}
            features = plain_run(model, context, letters, allocation.replace, NAMES, position)
            everything = SlotPrompts(context, **stacks)
            by_name = gradients(features, everything)
            assert bool(by_name["context"].any()) == allocation.context
            for letter in get_args(Letter):
                live = [bool(block.any()) for block in by_name[letter]]
                assert live == [block in allocation.blocks.get(letter, ()) for block in range(depth)], (letter, depth)


def test_dead_tensors_are_refused() -> None:
    _, tower = made("laion")
    tokens = tower.tokenise(["tench"])
    every, replacing_all = random_prompts(tower, "qkvr", 0), random_prompts(tower, "unshared-replace", 0)
    full = torch.zeros(tower.layers, 4, tower.width)
    wrong = [
        SlotPrompts(every.context, query=full),
        SlotPrompts(every.context, residual=full),
        SlotPrompts(None, full[:1], replacing_all.key, replacing_all.value, full[:1], replace=True),
        SlotPrompts(every.context, key=replacing_all.key, value=replacing_all.value, replace=True),
        SlotPrompts(None, key=full[:2], value=full[:2], replace=True),  # the slot goes on from nowhere
        SlotPrompts(every.context, gate=torch.zeros(tower.layers)),
    ]
    for prompts in wrong:
        with pytest.raises(TeachOnceError, match="do not fit"):
            tower.features(prompts, tokens)


def test_at_full_depth_carried_and_replacing_prompts_are_one_class_of_functions() -> None:
    _, tower = double_tower("laion")
    tokens = tower.tokenise(NAMES)
    for structure in ("unshared", "kv", "qkvr"):
        carried = random_prompts(tower, structure, 0)
        other = replacing(allocate("unshared-replace", tower.layers, 0), carried, tower.block_inputs(carried))
        assert torch.allclose(tower.features(other, tokens), tower.features(carried, tokens), rtol=0, atol=1e-12)
    back = random_prompts(tower, "unshared-replace", 0)
    assert back.key is not None and back.value is not None
    context = torch.zeros(4, tower.width, dtype=torch.float64)
    key, value = back.key.detach().clone(), back.value.detach().clone()
    for block in range(tower.layers):  # P = P' - h, where h depends on the blocks before
        states = tower.block_inputs(SlotPrompts(context, key=key[:block], value=value[:block]))
        key[block], value[block] = back.key[block] - states[block], back.value[block] - states[block]
    carried = SlotPrompts(context, key=key, value=value)
    assert torch.allclose(tower.features(carried, tokens), tower.features(back, tokens), rtol=0, atol=1e-12)


def test_one_prompt_for_all_three_letters_is_not_a_shared_token_but_with_the_residual_it_is() -> None:
    _, tower = double_tower("openai")
    tokens = tower.tokenise(NAMES)
    context = random_prompts(tower, "shared", 0).context
    assert context is not None
    delta = torch.randn(1, 4, tower.width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    shared = tower.features(SlotPrompts(context + delta[0]), tokens)
    three = tower.features(SlotPrompts(context, delta, delta, delta), tokens)
    four = tower.features(SlotPrompts(context, delta, delta, delta, delta), tokens)
    assert (three - shared).abs().max() > 1e-3
    assert torch.allclose(four, shared, rtol=0, atol=1e-13)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("structure", ["shared", "qkvr", "unshared-replace"])
def test_under_autocast_features_and_gradients_are_float32_and_close(structure: Structure, position: Position) -> None:
    _, tower = made("laion")
    tokens = tower.tokenise(NAMES, position=position)
    for depth in (0, 2):
        prompts = random_prompts(tower, structure, depth)
        exact = tower.features(prompts, tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = tower.features(prompts, tokens)
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() < 0.05
        expected = gradients(exact, prompts)
        for name, gradient in gradients(rounded, prompts).items():
            reference = expected[name]
            assert gradient.dtype == torch.float32
            assert torch.cosine_similarity(gradient.flatten(), reference.flatten(), dim=0) > 0.98, name
        assert torch.equal(tower.features(prompts, tokens), exact), "nothing of the other precision is kept"


@pytest.mark.parametrize("structure", [x for x in TEMPLATES_AT_0 if x != "unshared-replace"])
def test_zero_letters_change_no_bit(structure: Structure) -> None:
    _, tower = made("laion")
    context = random_prompts(tower, "shared", 0).context
    for position in POSITIONS:
        tokens = tower.tokenise(NAMES, position=position)
        shared = tower.features(SlotPrompts(context), tokens)
        for depth in range(tower.layers):
            letters = random_prompts(tower, structure, depth).apply(torch.zeros_like).tensors()
            zeros = SlotPrompts(**{**letters, "context": context})  # type: ignore[arg-type]
            assert torch.equal(tower.features(zeros, tokens), shared)
