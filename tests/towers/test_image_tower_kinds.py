"""One contract for the image towers of all libraries: what `ImageTower` promises holds for each kind it takes."""

from __future__ import annotations

import copy

import pytest
import torch
from image_reference import (
    KINDS,
    TIMM,
    L,
    M,
    exact_model_of,
    gradients,
    learner_of,
    model_of,
    photos,
    plain_features,
    prompts_of,
    tower_of,
)
from torch import Tensor

from teachonce.models.learner import image_learner, replacing
from teachonce.towers.image_tower import ImageTower, image_obstacle
from teachonce.towers.structures import Init, Structure, allocate

CONTRACT = ["openai", "average", *sorted(TIMM)]


@pytest.mark.parametrize("kind", KINDS)
def test_features_without_prompts_are_encode_images_in_double_precision_too(kind: str) -> None:
    model, pixels = exact_model_of(kind), photos(kind, 4).double()
    ours = ImageTower.from_clip(model).features(None, pixels)
    theirs = model.encode_image(pixels, normalize=True)
    assert ours.dtype == torch.float64 and (ours - theirs).abs().max() <= 1e-10
    assert image_obstacle(model) is None


@pytest.mark.parametrize("structure", ["qkvr", "unshared-replace"])
@pytest.mark.parametrize("init", ["normal", "template"])
@pytest.mark.parametrize("kind", CONTRACT)
def test_every_slot_of_every_block_and_letter_has_the_plain_references_gradient(
    kind: str, init: Init, structure: Structure
) -> None:
    pixels, model = photos(kind), exact_model_of(kind)
    tower = ImageTower.from_clip(model)
    for depth in (0, 1, L - 1):
        learner = learner_of(kind, structure, depth, init)
        exact = copy.deepcopy(learner).double()
        theirs, ours = plain_features(model, exact(), pixels.double()), tower.features(exact(), pixels.double())
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm()
        assert (ours - tower.features(None, pixels.double())).abs().max() > 1e-3
        expected = gradients(theirs, exact)
        allocated = {"context"} if structure != "unshared-replace" else set()
        allocated |= set(allocate(structure, L, depth).blocks) | ({"gate"} if init == "template" else set())
        assert set(expected) == allocated
        for name, gradient in gradients(ours, exact).items():
            reference = expected[name]
            assert (gradient - reference).norm() <= 1e-10 * reference.norm(), (depth, name)
            assert (reference if name == "gate" else reference.norm(dim=-1)).abs().min() > 1e-5, (depth, name)
        rounded = tower_of(kind).features(learner(), pixels)
        assert rounded.dtype == torch.float32 and (rounded - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("structure", ["shared", "qkvr", "unshared-replace"])
@pytest.mark.parametrize("kind", sorted(TIMM))
def test_a_closed_gate_is_the_frozen_tower_to_the_bit(kind: str, structure: Structure) -> None:
    tower, pixels = tower_of(kind), photos(kind)
    learner = image_learner(tower, prompts_of(structure, 2))
    features = tower.features(learner(), pixels)
    assert torch.equal(features, tower.features(None, pixels))
    assert (gradients(features, learner)["gate"].abs() > 1e-6).all(), "the closed gate is what opens first"


@pytest.mark.parametrize("kind", sorted(TIMM))
def test_units_are_the_sizes_of_the_patches_that_enter_each_block(kind: str) -> None:
    model, tower = model_of(kind), tower_of(kind)
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        for block in model.visual.trunk.blocks
    ]
    with torch.no_grad():
        model.encode_image(torch.zeros(1, 3, *tower.image_size))
    for hook in hooks:
        hook.remove()
    patches = torch.stack([x[0, model.visual.trunk.num_prefix_tokens :] for x in seen])
    expected = ((patches - patches.mean(2, keepdim=True)) ** 2).mean((1, 2)).sqrt()
    assert torch.allclose(tower.patch_scales(), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", CONTRACT)
def test_block_inputs_replace_carried_slots_exactly_on_the_image_they_were_taken_from(kind: str) -> None:
    tower = tower_of(kind)
    carried, grey = learner_of(kind, "unshared", 2)(), torch.zeros(1, 3, *tower.image_size)
    states = tower.block_inputs(carried)
    assert states.shape == (L, M, tower.width)
    stand_in = replacing(allocate("unshared-replace", L, 2), carried, states)
    with torch.no_grad():
        assert torch.allclose(tower.features(stand_in, grey), tower.features(carried, grey), rtol=0, atol=1e-5)
