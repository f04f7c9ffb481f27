"""Coupled image prompts are maps of the text prompts: they begin and are counted as said, and can start from others."""

from __future__ import annotations

import functools
from typing import Any, get_args

import image_reference
import open_clip
import pytest
import torch
import tower_reference
from coupled_reference import coupled_prompts

from teachonce.errors import UsageError
from teachonce.models.coupled import CoupledLearner, coupled_learner
from teachonce.models.learner import SlotLearner, text_learner
from teachonce.models.prompts import Prompts
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Structure
from teachonce.towers.text_tower import TextTower

STRUCTURES: tuple[Structure, ...] = get_args(Structure)
TEXT_LAYERS = 3


@functools.cache
def model_of(image_layers: int) -> Any:
    """A CLIP whose image tower has fewer, as many or more blocks than its text tower, and another width."""
    vision = {"layers": image_layers, "width": 48, "head_width": 16, "patch_size": 16, "image_size": 32}
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 4, "layers": TEXT_LAYERS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(image_layers)
        model: Any = open_clip.CLIP(24, vision, text, quick_gelu=True)
        image_reference.randomise(model.visual)
    return tower_reference.randomised(model, torch.Generator().manual_seed(1)).eval()


@functools.cache
def towers(image_layers: int) -> tuple[ImageTower, TextTower]:
    model = model_of(image_layers)
    return ImageTower.from_clip(model), TextTower.from_clip(model, tower_reference.tokenizer())


def learners(structure: Structure, image_layers: int = 3, **keys: Any) -> tuple[SlotLearner, CoupledLearner]:
    """Of both towers, at their start."""
    image, text = towers(image_layers)
    usual = {"init": "words"} if structure == "accumulate" else {}  # which no template starts
    prompts = Prompts(**{"structure": structure, "tower": "both", "coupled": True, **usual, **keys})
    of_text = text_learner(text, prompts)
    return of_text, coupled_learner(image, text, prompts, of_text, seed=4)


def moved(*modules: torch.nn.Module, by: float = 0.6) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.copy_(by * torch.randn(parameter.shape, generator=generator))


def plain(text: SlotLearner, image: CoupledLearner, image_layers: int, scaled: bool = True) -> SlotPrompts:
    of_image, of_text = towers(image_layers)
    sizes = (of_text.slot_scales("a photo of a").double(), of_image.patch_scales().double())
    sizes = sizes if scaled else (torch.ones_like(sizes[0]), torch.ones_like(sizes[1]))
    leaves = {name: x.double() for name, x in image.named_parameters()}
    return coupled_prompts(
        image, text().apply(torch.Tensor.double), leaves, sizes, 1 / of_text.width if scaled else 1.0
    )


@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_image_prompts_are_the_maps_of_the_text_prompts_of_their_block(structure: Structure) -> None:
    """Whichever tower has more blocks, in all blocks and in some, in our units and in the towers' own."""
    for image_layers in (2, 3, 5):
        for keys in ({}, {"depth": 2, "init": "normal"}, {"depth": 1, "layer_scale": False, "init": "words"}):
            text, image = learners(structure, image_layers, **keys)
            moved(text, image)
            prompts, scaled = image(), keys.get("layer_scale", True)
            prompts.require_fit(image_layers, 48, gated=True)
            for name, expected in plain(text, image, image_layers, scaled).tensors().items():
                off = (prompts.tensors()[name] - expected).abs().max() / expected.abs().max()
                assert off < 1e-5, (image_layers, keys, name)


@pytest.mark.parametrize("structure", ["unshared", "shared-replace", "shared"])
@torch.no_grad()
def test_the_first_step_is_the_frozen_student(structure: Structure) -> None:
    """The gate begins closed; without it the maps count at once, and slots differ from each other."""
    image_tower, _ = towers(3)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    bare = image_tower.features(None, pixels)
    closed, open_ = (learners(structure, init=init)[1]() for init in ("template", "words"))
    assert torch.allclose(image_tower.features(closed, pixels), bare, atol=1e-6, rtol=0)
    assert (image_tower.features(open_, pixels) - bare).norm(dim=-1).min() > 0.01
    slots = open_.key[0] if open_.context is None else open_.context  # type: ignore[index]
    assert torch.pdist(slots[:3]).min() > 0.1 * slots.std(), "the fourth word is the first again"


def test_maps_are_counted_and_begin_at_zero() -> None:
    """One a block, whichever letters go through it, and one of the context; what they are drawn from is not kept."""
    _, image = learners("unshared")
    count = (1 + 3) * (48 * 32 + 48) + 3
    assert image.trainable_parameters() == count and all(not x.any() for x in image.parameters())
    assert sorted(image.state_dict()) == sorted(dict(image.named_parameters()))
    assert learners("shared-replace", depth=2)[1].trainable_parameters() == 2 * (48 * 32 + 48) + 3


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_number_is_alive_in_both_towers(structure: Structure) -> None:
    """Image features move the maps and, through them, the text prompts; a map without inputs cannot learn yet."""
    text, image = learners(structure, init="words")
    moved(text, image)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    features = towers(3)[0].features(image(), pixels)
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
    named = {**dict(image.named_parameters()), **{f"text.{n}": x for n, x in text.named_parameters()}}
    gradients = torch.autograd.grad((features * direction).sum(), list(named.values()))
    for name, gradient in zip(named, gradients, strict=True):
        assert gradient.flatten(1).abs().amax(1).min() > 0 if gradient.ndim > 1 else gradient.any(), name


@pytest.mark.parametrize("structure", STRUCTURES)
@torch.no_grad()
def test_a_run_starts_from_the_prompts_of_another(structure: Structure) -> None:
    """The maps are found that lead from the text prompts to the image prompts, near those that were drawn."""
    for keys in ({}, {"depth": 2, "init": "words"}):
        text, image = learners(structure, **keys)
        moved(text, image, by=0.2)
        given = image().apply(torch.clone)
        fresh_text, fresh = learners(structure, **keys)
        fresh_text.load_start(text())
        fresh.load_start(given)
        for name, x in given.tensors().items():
            assert torch.allclose(fresh().tensors()[name], x, atol=1e-4 * float(x.abs().max())), name


@torch.no_grad()
def test_image_prompts_that_are_no_maps_of_the_text_prompts_are_refused() -> None:
    """Text deltas of zero lead to one image delta for all slots; and sizes must be the same."""
    text, image = learners("unshared")
    prompts = image()
    assert prompts.key is not None
    prompts.key.copy_(torch.randn(prompts.key.shape, generator=torch.Generator().manual_seed(2)))
    with pytest.raises(UsageError, match=r"no maps of the text prompts: \w+ would be") as caught:
        image.load_start(prompts)
    assert "coupled = false" in caught.value.hint
    with pytest.raises(UsageError, match="which cannot start coupled prompts of"):
        image.load_start(SlotPrompts(torch.zeros(4, 48)))
    assert text.slots == image.slots == 4
