"""How names are laid out changes no feature: padding inside attention, layouts that are kept, matrices cast once."""

from __future__ import annotations

import contextlib
from typing import get_args

import pytest
import torch
from torch import Tensor
from tower_reference import tiny_clip, tokenizer

from teachonce.models.learner import text_learner
from teachonce.models.prompts import Prompts
from teachonce.towers import causal_text, packing, text_parts
from teachonce.towers.structures import Position
from teachonce.towers.text_parts import TextParts
from teachonce.towers.text_tower import TextTower

NAMES = ["dog", "red fox", "x", "a very long name of a thing with many words", "yellow bus", "cup of tea", "a blue jay"]
CPU = torch.device("cpu")


def run(
    position: Position,
    structure: str = "unshared",
    kind: str = "openai",
    half: bool = False,
    chunk: Tensor | None = None,
) -> list[Tensor]:
    """Features of the names, and the gradients of every prompt."""
    tower = TextTower.from_clip(tiny_clip(kind), tokenizer())
    learner = text_learner(
        tower, Prompts(structure=structure, position=position, context="a photo of a", length=4, init="words")
    )  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    names = tower.tokenise(NAMES, ".", learner.slots, position)
    with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
        features = tower.features(learner(), names, chunk)
    weights = torch.randn(features.shape, generator=generator)
    return [features, *torch.autograd.grad((features * weights).sum(), list(learner.parameters()))]


@pytest.mark.parametrize("structure", ["shared", "unshared", "unshared-replace", "qkvr"])
@pytest.mark.parametrize("position", get_args(Position))
def test_padding_inside_attention_changes_rounding_only(
    position: Position, structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features to 1e-6, gradients to 1e-5 of their length; nothing is padded on a CPU."""
    exact = run(position, structure)
    monkeypatch.setattr(packing, "merges_lengths", lambda device: True)
    padded = run(position, structure)
    assert (padded[0] - exact[0]).abs().max() < 1e-6
    for a, b in zip(padded[1:], exact[1:], strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_quick_gelu_as_one_kernel_changes_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features to 1e-6, gradients to 1e-5 of their length; the model's own weights stay as they are."""
    exact = run("before")
    monkeypatch.setattr(text_parts, "fuses_activations", lambda device: True)
    fused = run("before")
    assert not torch.equal(fused[0], exact[0])  # it is another way to compute it
    assert (fused[0] - exact[0]).abs().max() < 1e-6
    for a, b in zip(fused[1:], exact[1:], strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_only_quick_gelu_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_clip("laion")
    monkeypatch.setattr(text_parts, "fuses_activations", lambda device: True)
    plain, prepared = TextParts.of(model), TextParts.of(model).prepared()
    for given, block in zip(plain.blocks, prepared.blocks, strict=True):
        assert type(block.mlp.gelu) is torch.nn.GELU and block.mlp.c_fc.weight is given.mlp.c_fc.weight


def test_names_of_many_lengths_share_one_group_and_each_row_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = TextTower.from_clip(tiny_clip("openai"), tokenizer())
    names = tower.tokenise(NAMES, ".", 4)
    plain = packing.pack(names, None, 4, CPU).layout
    monkeypatch.setattr(packing, "merges_lengths", lambda device: True)
    padded = packing.pack(names, None, 4, CPU).layout
    assert len(plain.groups) > 3 and plain.real is None and len(padded.groups) == 1
    source, real, padding = padded.groups[0].source, padded.real, padded.groups[0].padding
    assert source is not None and real is not None and padding is not None
    assert torch.equal(source[real], torch.arange(len(real)))
    assert sorted([*real.tolist(), *padding.tolist()]) == list(range(len(source)))


def test_groups_are_chosen_by_what_padding_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packing._merged([3] * 10 + [9]) == [(11, 9)]
    assert packing._merged([3] * 20_000 + [9]) == [(20_000, 3), (1, 9)]
    assert packing._merged([5]) == [(1, 5)]


@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize("last", [False, True])
def test_splits_give_the_bits_of_slices(position: Position, last: bool) -> None:
    """Attention with a slice for each group, as it was once, is the reference; gradients too."""
    tower = TextTower.from_clip(tiny_clip("openai"), tokenizer())
    layout = packing.pack(tower.tokenise(NAMES, ".", 4, position), None, 4, CPU).layout
    rows, generator = layout.groups[-1].rows.stop, torch.Generator().manual_seed(2)
    count = layout.groups[-1].names.stop
    q, k, v = (
        torch.randn(2, n, 8, generator=generator, requires_grad=True) for n in (count if last else rows, rows, rows)
    )
    keys, values = torch.randn(2, 2, 3, 8, generator=generator)
    prefix = causal_text._Prefix(keys, values, 0, None)
    new = causal_text._attend(q, k, v, prefix, layout, None, last)
    old = sliced(q, k, v, prefix, layout, last)
    assert torch.equal(new, old)
    weights = torch.randn(new.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad((new * weights).sum(), (q, k, v)),
        torch.autograd.grad((old * weights).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.equal(a, b)


def sliced(q: Tensor, k: Tensor, v: Tensor, prefix: causal_text._Prefix, layout: packing.Layout, last: bool) -> Tensor:
    heads, _, d = q.shape
    q = q * d**-0.5
    to_prefix = q @ prefix.keys.transpose(1, 2)
    width, prefix_weights, own_parts = to_prefix.shape[2], [], []
    for group in layout.groups:
        rows = group.names if last else group.rows
        names = (heads, group.count, (rows.stop - rows.start) // group.count)
        own_q = q[:, rows].reshape(*names, d)
        own_k, own_v = (x[:, group.rows].reshape(heads, group.count, -1, d) for x in (k, v))
        scores = own_q @ own_k.transpose(2, 3)
        if not last:
            scores = scores + group.mask
        both = torch.cat([to_prefix[:, rows].reshape(*names, width), scores], dim=-1).softmax(-1)
        prefix_weights.append(both[..., :width].flatten(1, 2))
        own_parts.append((both[..., width:] @ own_v).flatten(1, 2))
    return torch.cat(prefix_weights, 1) @ prefix.values + torch.cat(own_parts, 1)


@pytest.mark.parametrize("position", get_args(Position))
def test_matrices_cast_once_give_the_bits_of_autocast(position: Position, monkeypatch: pytest.MonkeyPatch) -> None:
    once = run(position, half=True)
    monkeypatch.setattr(TextParts, "prepared", lambda parts: parts)
    for a, b in zip(once, run(position, half=True), strict=True):
        assert torch.equal(a, b)


def test_a_layout_is_kept_as_long_as_the_chunk_and_made_anew_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = TextTower.from_clip(tiny_clip("openai"), tokenizer())
    names, others = tower.tokenise(NAMES), tower.tokenise(NAMES[::-1])
    kept, made, chunk = packing.KeptLayouts[int](), iter(range(9)), torch.tensor([1, 2])
    assert [kept.of(names, chunk, 4, made.__next__) for _ in range(3)] == [0, 0, 0]
    assert kept.of(names, chunk, 5, made.__next__) == 1
    assert kept.of(others, chunk, 5, made.__next__) == 2
    chunk[0] = 3
    assert kept.of(others, chunk, 5, made.__next__) == 3
    assert kept.of(others, chunk.clone(), 5, made.__next__) == 4
    assert [kept.of(others, None, 5, made.__next__) for _ in range(2)] == [5, 6]
    del chunk
    assert len(kept._of_chunks) == 0
