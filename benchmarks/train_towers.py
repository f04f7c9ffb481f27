"""Cases `tower` and `flops`: the text tower's step against the plain way, and a step's parts at full size.

No weights are loaded: towers are random, and on the meta device where only operations are counted.

Shapes: C names, S positions, M slots, D width, H heads, B rows, K candidates, E embedding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from train_parts import CONTEXT, GIGA, apart, by_turns, count_flops, made_up_clip, most_apart, say, some_names, table

from teachonce.models.clip import LoadedClip, autocast
from teachonce.models.learner import text_learner
from teachonce.models.prompts import Prompts
from teachonce.models.spec import Precision
from teachonce.towers.causal_text import CausalText
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Structure
from teachonce.towers.text_tower import TextTower
from teachonce.towers.tokens import NameTokens
from teachonce.training.two_pass import TextPass

STRUCTURES: tuple[Structure, ...] = ("shared", "unshared", "unshared-replace")
SLOTS = (4, 16)
AT_ONCE = 128  # images that are in a tower at once
TERA = 1e12


@dataclass(frozen=True, eq=False)
class PlainTower:
    """open_clip's own modules over every position of `{slots} {name}.`, the way that CoOp and POMP do it."""

    model: Any
    tokens_CS: Tensor
    end_C: Tensor

    @classmethod
    def of(cls, clip: LoadedClip, names: Sequence[str], slots: int, truncated: bool) -> PlainTower:
        """Make the tower for these names: with all its positions, or with those up to the end of the longest name."""
        model: Any = clip.model
        token_ids = [[49406, *[0] * slots, *clip.tokenizer.encode(name + "."), 49407] for name in names]
        length = max(map(len, token_ids)) if truncated else model.positional_embedding.shape[0]
        tokens = torch.tensor([ids + [0] * (length - len(ids)) for ids in token_ids], device=clip.device)
        return cls(model, tokens, torch.tensor([len(ids) - 1 for ids in token_ids], device=clip.device))

    def features(self, prompts: SlotPrompts) -> Tensor:
        """Compute unit features, [C, E]."""
        model, slots, length = self.model, prompts.slots, self.tokens_CS.shape[1]
        embedded = model.token_embedding(self.tokens_CS)
        if prompts.context is not None:
            embedded = _put(embedded, prompts.context.expand(len(embedded), -1, -1), slots)
        x = embedded + model.positional_embedding[:length]
        mask = model.attn_mask[:length, :length]
        if prompts.key is None:
            x = model.transformer(x, attn_mask=mask)
        else:
            for index, block in enumerate(model.transformer.resblocks):
                x = _block(block, index, x, prompts, mask)
        pooled = model.ln_final(x)[torch.arange(len(x), device=x.device), self.end_C]
        return F.normalize((pooled @ model.text_projection).float(), dim=-1)


def _put(x_CSD: Tensor, slots_CMD: Tensor, slots: int) -> Tensor:
    return torch.cat([x_CSD[:, :1], slots_CMD, x_CSD[:, 1 + slots :]], dim=1)


def _block(block: Any, index: int, x_CSD: Tensor, prompts: SlotPrompts, mask: Tensor) -> Tensor:
    """Run one block with its own prompts for queries, keys and values, added to the slot states or in their place."""
    slots, normed_CSD, attn, heads = prompts.slots, block.ln_1(x_CSD), block.attn, []
    for letter, weight, bias in zip(
        ("query", "key", "value"), attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True
    ):
        stack, entered_CSD = getattr(prompts, letter), normed_CSD
        if stack is not None and index < len(stack):
            states_CMD = x_CSD[:, 1 : 1 + slots]
            prompt = stack[index].expand_as(states_CMD) if prompts.replace else states_CMD + stack[index]
            entered_CSD = _put(normed_CSD, block.ln_1(prompt), slots)
        projected = F.linear(entered_CSD, weight, bias)
        heads.append(projected.view(*projected.shape[:2], attn.num_heads, -1).transpose(1, 2))
    query, key, value = heads
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype))
    x_CSD = x_CSD + block.ls_1(attn.out_proj(mixed.transpose(1, 2).flatten(2)))
    return cast(Tensor, x_CSD + block.ls_2(block.mlp(block.ln_2(x_CSD))))


def some_prompts(tower: TextTower, structure: Structure, slots: int) -> SlotPrompts:
    """Make prompts away from their start, in every layer."""
    learner = text_learner(
        tower,
        Prompts(structure=structure, context=CONTEXT, length=slots, init="words"),
    )
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.normal_(0, 0.1)
        prompts: SlotPrompts = learner()
        return prompts


@dataclass(frozen=True, eq=False)
class Pulled:
    """What a forward and backward pass gives."""

    loss: float
    features: Tensor
    gradients: list[Tensor]


def pulled(features_of: Callable[[SlotPrompts], Tensor], prompts: SlotPrompts, targets: Tensor) -> Pulled:
    """Compute the squared distance of the features from fixed ones, and its gradient on every prompt."""
    leaves = prompts.apply(lambda x: x.clone().requires_grad_())
    features = features_of(leaves)
    loss = (features - targets).square().sum()
    gradients = torch.autograd.grad(loss, list(leaves.tensors().values()))
    return Pulled(float(loss.detach()), features.detach(), list(gradients))


def tower_case(args: argparse.Namespace) -> None:
    """Compare our way with the plain way over 77 positions, and over those up to the longest name."""
    clip, names = made_up_clip(), tuple(dict.fromkeys(name.lower() for name in some_names(2 * args.names)))
    names = names[: args.names]
    tower, rows = TextTower.from_clip(clip.model, clip.tokenizer), []
    torch.manual_seed(1)
    targets = F.normalize(torch.randn(len(names), 512), dim=-1)
    for slots in SLOTS:
        tokens = tower.tokenise(names, slots=slots)
        plain, short = (PlainTower.of(clip, names, slots, truncated) for truncated in (False, True))
        for structure in STRUCTURES:
            prompts = some_prompts(tower, structure, slots)
            sides: dict[str, Callable[[SlotPrompts], Tensor]] = {
                "plain": plain.features,
                "truncated": short.features,
                "ours": partial(tower.features, names=tokens),
            }
            rows.append([structure, str(slots), *_compare(sides, prompts, targets, args.repeats)])
    say(f"### tower: 12 blocks of width 512, {len(names)} names, forward and backward, {args.threads} threads")
    table(
        [
            "structure",
            "slots",
            "77 positions, s",
            "truncated, s",
            "ours, s",
            "faster than 77",
            "than truncated",
            "77, GFLOP",
            "truncated, GFLOP",
            "ours, GFLOP",
            "77 over ours",
            "loss differs by",
            "features",
            "gradients",
        ],
        rows,
    )
    say("Differences are relative, the larger one of the two plain ways with ours; of gradients, the worst tensor's.")


def _compare(
    sides: dict[str, Callable[[SlotPrompts], Tensor]], prompts: SlotPrompts, targets: Tensor, repeats: int
) -> list[str]:
    pulled_by: dict[str, Pulled] = {}

    def one(name: str) -> None:
        pulled_by[name] = pulled(sides[name], prompts, targets)

    ways: dict[str, Callable[[], object]] = {name: partial(one, name) for name in sides}
    flops = [count_flops(way) / GIGA for way in ways.values()]
    times = list(by_turns(ways, repeats, torch.device("cpu")).values())
    exact, others = pulled_by["ours"], [pulled_by["plain"], pulled_by["truncated"]]
    errors = [
        max(abs(exact.loss / other.loss - 1) for other in others),
        max(apart(exact.features, other.features) for other in others),
        max(most_apart(exact.gradients, other.gradients) for other in others),
    ]
    return [
        *(f"{x:.3f}" for x in times),
        f"{times[0] / times[2]:.1f}",
        f"{times[1] / times[2]:.1f}",
        *(f"{x:,.1f}" for x in flops),
        f"{flops[0] / flops[2]:.1f}",
        *(f"{x:.0e}" for x in errors),
    ]


def flops_case(args: argparse.Namespace) -> None:
    """Count a step's parts at the size of the claim, and time them where there is a GPU."""
    images, candidates = args.full_batch, args.full_candidates
    with patch.object(torch, "is_autocast_enabled", return_value=False):  # this function does not know the meta device
        counted = {n: [count_flops(work) / TERA] for n, work in _parts("meta", images, candidates).items()}
    head = ["TFLOP"]
    if torch.cuda.is_available():
        timed_parts = _parts("cuda", images, candidates)
        kinds: tuple[Precision, ...] = ("fp32", "bf16")
        for precision in kinds:
            head.append(f"seconds, {precision}")
            for name, seconds in _timed(timed_parts, precision, args.repeats).items():
                counted[name].append(seconds)
    say(f"### flops: batch {images:,}, {candidates:,} candidates, ViT-L/14 teacher, ViT-B/16 student, unshared prompts")
    table(["part of a step", *head], [[name, *(f"{x:,.3f}" for x in row)] for name, row in counted.items()])
    rows = []
    for text in [name for name in counted if name.startswith("text")]:
        sums = [counted[text], counted["logits and loss"]]
        cache = [sum(column) for column in zip(*sums, strict=True)]
        student = [a + b for a, b in zip(cache, counted["student's images"], strict=True)]
        teacher = [a + b for a, b in zip(student, counted["teacher's images"], strict=True)]
        for name, values in (("from cache", cache), ("+ student", student), ("+ student and teacher", teacher)):
            row = [f"{value:,.3f} ({value / base:.1f})" for value, base in zip(values, cache, strict=True)]
            rows.append([text, name, *row])
    table(["text tower", "step", *(f"{name} (over from cache)" for name in head)], rows)
    say("Only products and convolutions are counted: neither decoding nor the teacher's softmax over all classes is.")


def _timed(parts: dict[str, Callable[[], object]], precision: Precision, repeats: int) -> dict[str, float]:
    """Return the median seconds of each part on the GPU."""
    device = torch.device("cuda")
    with autocast(device, precision):
        for work in parts.values():
            work()
        return by_turns(parts, repeats, device)


def _parts(device: str, images: int, candidates: int) -> dict[str, Callable[[], object]]:
    """What steps are made of, ready to run."""
    parts: dict[str, Callable[[], object]] = {
        "teacher's images": _image_tower("ViT-L-14", images, device),
        "student's images": _image_tower("ViT-B-16", images, device),
        "logits and loss": _logits_and_loss(images, candidates, 512, device),
    }
    names, everything = some_names(candidates), some_names(21_841)
    for slots in SLOTS:
        clip = made_up_clip()
        tower = TextTower.from_clip(clip.model, clip.tokenizer)  # from_clip looks at values, which meta tensors lack
        clip.model.to(device)
        model: Any = clip.model
        clip = replace(clip, device=torch.device(device))
        moved = replace(tower.parts, positional_embedding=model.positional_embedding, projection=model.text_projection)
        tower = replace(tower, parts=moved, run=CausalText(moved, tower.coder.start))
        for kind, some in ((f"{candidates:,} names", names), ("all 21,841 classes", everything)):
            parts[f"text tower, {slots} slots, {kind}"] = _text_step(tower, tower.tokenise(some, slots=slots), slots)
        parts[f"text tower, {slots} slots, {candidates:,} names, 77 positions"] = _plain_step(clip, tower, names, slots)
    return parts


def _image_tower(name: str, images: int, device: str) -> Callable[[], object]:
    config: Any = open_clip.get_model_config(name)
    with torch.device(device):
        model: Any = open_clip.CLIP(**config).eval().requires_grad_(False)
    pixels = torch.zeros(images, 3, 224, 224, device=device)

    def run() -> None:
        with torch.no_grad():
            for part in torch.split(pixels, AT_ONCE):
                model.encode_image(part)

    return run


def _text_step(tower: TextTower, names: NameTokens, slots: int) -> Callable[[], object]:
    """Run forward and backward of the names, in chunks where there are many."""
    prompts = some_prompts(tower, "unshared", slots)
    classes = torch.arange(len(names.names))

    def run() -> None:
        leaves = prompts.apply(lambda x: x.detach().requires_grad_())
        step = TextPass(tower, lambda: leaves, names, classes, class_chunk=1024)
        step.pull_back(list(leaves.tensors().values()), [torch.ones_like(step.features)])

    return run


def _plain_step(clip: LoadedClip, tower: TextTower, names: Sequence[str], slots: int) -> Callable[[], object]:
    """Do the same over 77 positions, by chunks that fit a GPU."""
    prompts = some_prompts(tower, "unshared", slots)
    parts = [PlainTower.of(clip, names[i : i + 250], slots, truncated=False) for i in range(0, len(names), 250)]

    def run() -> None:
        for part in parts:
            leaves = prompts.apply(lambda x: x.detach().requires_grad_())
            torch.autograd.grad(part.features(leaves).sum(), list(leaves.tensors().values()))

    return run


def _logits_and_loss(images: int, candidates: int, width: int, device: str) -> Callable[[], object]:
    rows = torch.zeros(images, width, device=device)
    features = torch.zeros(candidates, width, device=device, requires_grad=True)
    teacher = torch.full((images, candidates), 1 / candidates, device=device)
    labels = torch.zeros(images, dtype=torch.int64, device=device)

    def run() -> None:
        with torch.autocast(rows.device.type if rows.device.type != "meta" else "cpu", enabled=False):
            log_p = (100 * rows @ features.T).log_softmax(1)
            torch.autograd.grad(F.nll_loss(log_p, labels) - (teacher * log_p).sum(1).mean(), features)

    return run
