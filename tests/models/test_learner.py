"""Prompts start where they should, are counted exactly, learn in their slots' own size, and can start from others."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from tower_reference import CONTEXT, NAMES, plain_features, random_prompts, tiny_clip, tokenizer

from teachonce.errors import TeachOnceError, UsageError
from teachonce.models.learner import NOISE, SlotLearner, text_learner
from teachonce.models.prompts import Prompts
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import REPLACING, Structure, allocate
from teachonce.towers.text_tower import TextTower

STRUCTURES: tuple[Structure, ...] = get_args(Structure)
CARRIED = [x for x in STRUCTURES if x not in (*REPLACING, "accumulate")]


@functools.cache
def make_tower(kind: str = "laion") -> TextTower:
    return TextTower.from_clip(tiny_clip(kind), tokenizer())


def detached(learner: SlotLearner) -> SlotPrompts:
    prompts: SlotPrompts = learner()
    return prompts.apply(torch.Tensor.detach)


def learner_of(structure: Structure = "unshared", seed: int = 0, **keys: object) -> SlotLearner:
    if structure == "accumulate":  # whose start is no template
        keys = {"init": "words", **keys}
    return text_learner(make_tower(), Prompts(structure=structure, **keys), seed)  # type: ignore[arg-type]


def train(learner: SlotLearner) -> SlotPrompts:
    """The learner's prompts after something has been learned."""
    with torch.no_grad():
        for number, parameter in enumerate(learner.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))
    return detached(learner)


def assert_same(actual: SlotPrompts, expected: SlotPrompts) -> None:
    assert actual.replace == expected.replace and actual.tensors().keys() == expected.tensors().keys()
    for name, tensor in expected.tensors().items():
        assert torch.allclose(actual.tensors()[name], tensor, rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_number_of_parameters_is_the_allocations(structure: Structure) -> None:
    for depth in range(5):
        learner = learner_of(structure, depth=depth)
        assert learner.trainable_parameters() == allocate(structure, 4, depth).parameters(4, 48)
        assert all(not parameter.any() for parameter in learner.parameters()), "every parameter starts at zero"
        assert sorted(learner.state_dict()) == sorted(dict(learner.named_parameters())), "what follows is not kept"
    assert learner_of("unshared").trainable_parameters() == 4 * 48 * (1 + 3 + 4 + 4)
    assert learner_of("unshared-replace", depth=2).trainable_parameters() == 4 * 48 * (1 + 2 + 2 + 1)


def test_a_tower_of_one_block_has_no_live_query() -> None:
    learner = text_learner(make_tower("one_block"), Prompts(structure="qkvr"))
    assert sorted(dict(learner.named_parameters())) == ["context", "key", "value"]
    assert learner.trainable_parameters() == 4 * 32 * 3


@pytest.mark.parametrize("init", ["template", "words"])
def test_the_start_is_the_hand_written_context(init: str) -> None:
    tower = make_tower()
    for structure in CARRIED:
        prompts = learner_of(structure, init=init)()
        assert prompts.context is not None and torch.equal(prompts.context, tower.embed_words(CONTEXT))
        assert not any(x.any() for name, x in prompts.tensors().items() if name != "context")
    states = tower.slot_states(CONTEXT)
    going_on = SlotPrompts(None, states[1:2], states[:2], states[:2], states[1:2], replace=True)
    for structure in REPLACING:
        assert_same(learner_of(structure, init=init)(), SlotPrompts(None, key=states, value=states, replace=True))
        assert_same(learner_of(structure, init=init, depth=2)(), going_on)


def test_one_state_a_block_is_every_letter_of_the_block() -> None:
    """4 slots of width 48 in each prompted block, whatever is made of them; other prompts cannot start it."""
    for depth, last in ((0, False), (3, True)):
        learner = learner_of("shared-replace", depth=depth)
        prompts, blocks = train(learner), depth or 4
        assert learner.trainable_parameters() == blocks * 4 * 48
        assert prompts.key is not None and torch.equal(prompts.key, prompts.value)  # type: ignore[arg-type]
        if last:
            assert torch.equal(prompts.query, prompts.key[-1:]) and torch.equal(prompts.residual, prompts.key[-1:])  # type: ignore[arg-type]
        else:
            assert prompts.query is None and prompts.residual is None
    apart = train(learner_of("unshared-replace"))
    with pytest.raises(UsageError, match="a value that is not their key"):
        learner_of("shared-replace").load_start(apart)
    learner_of("unshared-replace").load_start(train(learner_of("shared-replace")))


def test_words_leave_further_slots_to_noise_and_replacing_prompts_to_what_that_leads_to() -> None:
    tower = make_tower()
    longer = learner_of("shared", init="words", length=7)()
    assert longer.context is not None and longer.context.shape == (7, 48)
    assert torch.equal(longer.context[:4], tower.embed_words(CONTEXT))
    assert 0.7 * NOISE < longer.context[4:].std() < 1.3 * NOISE
    replaced = learner_of("unshared-replace", init="words", length=7)
    assert_same(replaced(), replace(replaced(), key=tower.block_inputs(longer), value=tower.block_inputs(longer)))
    tokens = tower.tokenise(NAMES)
    assert torch.allclose(tower.features(replaced(), tokens), tower.features(longer, tokens), atol=1e-5)


def test_a_random_start_has_the_right_size_everywhere_and_is_a_function_of_the_seed() -> None:
    carried = detached(learner_of("qkvr", init="normal", length=60, seed=3))
    assert carried.context is not None and abs(float(carried.context.std()) / NOISE - 1) < 0.1
    assert not any(x.any() for name, x in carried.tensors().items() if name != "context")
    sigma = make_tower().slot_scales(CONTEXT)
    for layer_scale in (True, False):
        drawn = detached(learner_of("unshared-replace", init="normal", length=60, depth=3, layer_scale=layer_scale))
        for name, blocks in {"key": [0, 1, 2], "value": [0, 1, 2], "query": [2], "residual": [2]}.items():
            sizes = drawn.tensors()[name].std(dim=(1, 2))
            assert torch.allclose(sizes, sigma[blocks], rtol=0.1), name
    everything = torch.cat([x.flatten(1) / sigma[0] for x in drawn.tensors().values()])
    assert torch.corrcoef(everything).fill_diagonal_(0).abs().max() < 0.1, "each letter and block is drawn apart"
    for structure in ("shared", "unshared-replace"):
        first, again, other = (learner_of(structure, init="normal", seed=seed)().tensors() for seed in (1, 1, 2))
        assert all(
            torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in first
        )


def test_prompts_are_measured_in_the_slots_own_size() -> None:
    sigma, ones = make_tower().slot_scales(CONTEXT), torch.ones(4)
    for layer_scale, unit in ((True, sigma), (False, ones)):
        for structure, depth, blocks in (
            ("qkvr", 2, {"context": [0], "query": [0, 1], "key": [0, 1], "value": [0, 1], "residual": [0, 1]}),
            ("unshared-replace", 3, {"query": [2], "key": [0, 1, 2], "value": [0, 1, 2], "residual": [2]}),
        ):
            learner = learner_of(structure, depth=depth, layer_scale=layer_scale)  # type: ignore[arg-type]
            start, after = learner().tensors(), train(learner).tensors()
            assert after.keys() == blocks.keys()
            for name, parameter in learner.named_parameters():
                scale = unit[blocks[name]].view(-1, *[1] * (parameter.ndim - 1))
                assert torch.allclose(after[name] - start[name], scale * parameter, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("structure", STRUCTURES)
def test_trained_prompts_equal_the_plain_reference(structure: Structure) -> None:
    prompts = train(learner_of(structure, depth=3))
    ours = make_tower().features(prompts, make_tower().tokenise(NAMES[:6]))
    assert torch.allclose(ours, plain_features(tiny_clip("laion"), prompts, NAMES[:6]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_learning_goes_on_from_given_prompts(structure: Structure) -> None:
    for init in ("template", "normal") if structure != "accumulate" else ("words", "normal"):
        given = train(learner_of(structure, depth=2, init=init, seed=5))
        learner = learner_of(structure, depth=2, init="words")
        train(learner)  # what was there does not matter
        learner.load_start(given)
        assert_same(learner(), given)


@pytest.mark.parametrize("structure", [x for x in STRUCTURES if x != "accumulate"])
def test_a_shared_context_starts_every_structure(structure: Structure) -> None:
    tower, tokens = make_tower(), make_tower().tokenise(NAMES)
    shared = random_prompts(tower, "shared", 0)
    for depth in (0, 1, 3):
        learner = learner_of(structure, depth=depth)
        learner.load_start(shared)
        assert torch.allclose(tower.features(learner(), tokens), tower.features(shared, tokens), rtol=0, atol=2e-5)


def test_added_slots_begin_as_the_states_of_those_before_them_or_as_noise() -> None:
    """A shared context, or an accumulation of fewer blocks, starts it: further slots are as they begin."""
    tower = make_tower()
    start = learner_of("accumulate", depth=3)()
    assert start.added is not None and torch.equal(start.added, tower.slot_states(CONTEXT)[1:3])
    drawn = learner_of("accumulate", init="normal", length=60)()
    assert drawn.added is not None and abs(float(drawn.added.detach().std()) / NOISE - 1) < 0.1
    fewer, shared = random_prompts(tower, "accumulate", 2), random_prompts(tower, "shared", 0)
    assert fewer.added is not None and shared.context is not None
    learner = learner_of("accumulate", depth=3)
    learner.load_start(fewer)
    assert_same(learner(), replace(fewer, added=torch.cat([fewer.added, start.added[1:]])))
    learner.load_start(shared)
    assert_same(learner(), replace(shared, added=start.added))
    with pytest.raises(UsageError, match="cannot start"):
        learner_of("unshared", depth=3).load_start(fewer)
    with pytest.raises(UsageError, match="cannot start"):
        learner_of("unshared-replace", depth=2).load_start(fewer)


def test_an_accumulation_is_refused_where_it_could_not_be_what_was_asked_for() -> None:
    with pytest.raises(UsageError, match="accumulate cannot start as it"):
        learner_of("accumulate", init="template")
    with pytest.raises(UsageError, match="add theirs before it"):
        learner_of("accumulate", position="after")


def test_carried_prompts_start_wider_carried_ones_and_replacing_ones_of_their_depth() -> None:
    tower, tokens = make_tower(), make_tower().tokenise(NAMES)
    given = random_prompts(tower, "kv", 2)
    for structure, depth in (("unshared", 3), ("qkvr", 2), ("unshared-replace", 2), ("unshared-replace", 0)):
        learner = learner_of(structure, depth=depth)  # type: ignore[arg-type]
        learner.load_start(given)
        assert torch.allclose(tower.features(learner(), tokens), tower.features(given, tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("given", "structure", "depth"),
    [
        ("unshared", "kv", 0),  # no query to take the given one
        ("unshared", "unshared", 2),  # fewer blocks
        ("unshared", "unshared-replace", 2),
        ("kv", "shared", 0),
        ("unshared-replace", "unshared", 0),
        ("unshared-replace", "unshared-replace", 2),
    ],
)
def test_prompts_with_more_than_there_is_room_for_are_refused(
    given: Structure, structure: Structure, depth: int
) -> None:
    learner = learner_of(structure, depth=depth)
    with pytest.raises(UsageError, match="cannot start prompts of") as problem:
        learner.load_start(random_prompts(make_tower(), given, 0))
    assert "shared" in problem.value.hint and not any(x.any() for x in learner.parameters())


@pytest.mark.parametrize("structure", ["shared", "unshared-replace"])
def test_prompts_of_another_size_are_refused(structure: Structure) -> None:
    for other in (random_prompts(make_tower(), "shared", 0, slots=3), random_prompts(make_tower("short"), "shared", 0)):
        with pytest.raises(UsageError, match="cannot start prompts of"):
            learner_of(structure).load_start(other)


def test_a_gate_is_trained_counted_and_loaded() -> None:
    gate = torch.tensor([0.5, -0.5])
    start = SlotPrompts(torch.ones(3, 4), gate=gate)
    learner = SlotLearner(allocate("unshared", 2, 0), start, torch.tensor([2.0, 3.0]))
    assert learner.trainable_parameters() == 3 * 4 * (1 + 1 + 2 + 2) + 2
    assert torch.equal(learner().tensors()["gate"], gate)
    learner.load_start(SlotPrompts(torch.zeros(3, 4), gate=gate + 1))
    assert torch.equal(learner.get_parameter("gate"), torch.ones(2)), "a gate is measured in itself"
    with pytest.raises(UsageError):
        learner.load_start(SlotPrompts(torch.zeros(3, 4)))


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ({"length": 5}, "5 slots cannot start as 'a photo of a', which has 4 tokens", "init = 'words'"),
        ({"length": 3}, "3 slots cannot start", "length = 0"),
        ({"length": 3, "init": "words"}, "3 slots are too few for the 4 tokens", "raise length"),
        ({"length": 75, "init": "normal"}, "75 slots: .*1 to 74", ""),
        ({"depth": 5}, "depth 5 .*4 blocks", "0 to 4"),
        ({"context": " "}, "is empty", ""),
        (
            {"structure": "unshared-replace", "position": "after"},
            "slots after the name have other states",
            "init = 'words'",
        ),
        ({"structure": "unshared-replace", "position": "around"}, "slots around the name", "position = 'before'"),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out(spec: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as problem:
        learner_of(**spec)  # type: ignore[arg-type]
    assert hint in problem.value.hint


def test_a_start_that_is_not_what_is_trained_is_a_bug() -> None:
    ones, scales = torch.ones(3, 4), torch.ones(2)
    stack: Tensor = ones.expand(2, -1, -1)
    for start in (SlotPrompts(ones, key=stack), SlotPrompts(None, key=stack, value=stack, replace=True)):
        with pytest.raises(TeachOnceError, match="were expected"):
            SlotLearner(allocate("shared", 2, 0), start, scales)
    with pytest.raises(TeachOnceError, match="a start of shape"):
        SlotLearner(allocate("k", 2, 1), SlotPrompts(ones, key=stack), scales)
