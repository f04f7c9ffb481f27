"""Forward and backward of the prompted text tower against the plain ways, all in one run.

    python benchmarks/text_tower.py [--width 512 --layers 12 --slots 16 --names 64 --repeats 5 --threads 1]

Two references replace the slots in the embedded text and run open_clip's own blocks (CoOp's way): over all 77
positions, and over no more than the longest name of the batch needs. They start from the same context vectors as ours
must give the same features and gradient: the errors are printed above the table. FLOPs are of matrix products and
attention, forward and backward, as PyTorch's own counter gives them. Further rows are other structures, whose equality
with a plain tower is what tests/unit/test_tower_structures.py proves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import open_clip
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from teachonce.slot_prompts import SlotPrompts
from teachonce.structures import Structure, allocate
from teachonce.text_tower import TextTower
from teachonce.vocabulary import load_vocabulary

OURS: tuple[tuple[str, Structure], ...] = (
    ("before", "shared"),
    ("before", "unshared"),
    ("before", "unshared-replace"),
    ("after", "unshared"),
    ("after", "unshared-replace"),
)


@dataclass(frozen=True)
class Found:
    """What one forward and backward of a fixed linear loss gave."""

    features: Tensor
    gradient: Tensor  # of the first prompt tensor
    seconds: float
    flops: int


def build(width: int, layers: int) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer]:
    """A CLIP with random weights, a small image tower and an OpenAI-style text tower."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, head_width=32, patch_size=16, image_size=32)
    text = open_clip.CLIPTextCfg(width=width, heads=width // 64, layers=layers)
    return open_clip.CLIP(width, vision, text, quick_gelu=True).eval(), open_clip.SimpleTokenizer()


def plain_features(model: open_clip.CLIP, tokens: Tensor, context: Tensor) -> Tensor:
    """CoOp's way: context vectors put into the embedded text, every given position of every layer computed."""
    slots, length = len(context), tokens.shape[1]
    embedded = model.token_embedding(tokens)
    x = torch.cat([embedded[:, :1], context.expand(len(tokens), -1, -1), embedded[:, 1 + slots :]], dim=1)
    x = model.transformer(x + model.positional_embedding[:length], attn_mask=model.attn_mask[:length, :length])
    pooled = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection
    return torch.nn.functional.normalize(pooled, dim=-1)


def step(compute: Callable[[], Tensor], leaves: list[Tensor], weight: Tensor, counted: bool = False) -> Found:
    """One forward and backward; counted: under PyTorch's counter, which takes time of its own."""
    with FlopCounterMode(display=False) if counted else torch.enable_grad() as counter:
        began = time.perf_counter()
        features = compute()
        gradients = torch.autograd.grad((features * weight).sum(), leaves)
        seconds = time.perf_counter() - began
    flops = counter.get_total_flops() if isinstance(counter, FlopCounterMode) else 0
    return Found(features.detach(), gradients[0], seconds, flops)


def random_prompts(tower: TextTower, structure: Structure, slots: int) -> SlotPrompts:
    """A context as CoOp starts it, and small letters in every block; the same numbers for every structure."""
    allocation = allocate(structure, tower.layers, 0)
    torch.manual_seed(1)
    context = (0.02 * torch.randn(slots, tower.width)).requires_grad_() if allocation.context else None
    letters = {
        letter: (0.02 * torch.randn(len(blocks), slots, tower.width)).requires_grad_()
        for letter, blocks in allocation.blocks.items()
    }
    return SlotPrompts(context, **letters, replace=allocation.replace)


def ways(
    model: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer, names: list[str], slots: int
) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """What is timed: a forward pass, and the tensors whose gradient is taken."""
    tower = TextTower.from_clip(model, tokenizer)
    context = random_prompts(tower, "shared", slots).context
    if context is None:
        raise ValueError("shared prompts have a context")
    tokens = tokenizer([" ".join(["x"] * slots + [name]) + "." for name in names])
    short = tokens[:, : int(tokens.argmax(-1).max()) + 1]
    found: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
        "plain, 77 positions": (lambda: plain_features(model, tokens, context), [context]),
        f"plain, cut to {short.shape[1]}": (lambda: plain_features(model, short, context), [context]),
    }
    for position, structure in OURS:
        prompts = random_prompts(tower, structure, slots)
        own = tower.tokenise(names, position=position)  # type: ignore[arg-type]
        found[f"teachonce, {structure}, slots {position} the name"] = (
            lambda prompts=prompts, own=own: tower.features(prompts, own),  # type: ignore[misc]
            list(prompts.tensors().values()),
        )
    return found


def main() -> None:
    """Check equality, then time all ways by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"width": 512, "layers": 12, "slots": 16, "names": 64, "repeats": 5, "threads": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = build(args.width, args.layers)
    vocabulary = load_vocabulary("timm:imagenet22k/first-lemma").names
    chosen = list(dict.fromkeys(name.lower() for name in vocabulary[:: len(vocabulary) // (2 * args.names)]))
    chosen = chosen[: args.names]
    weight = torch.randn(len(chosen), args.width)
    timed = ways(model, tokenizer, chosen, args.slots)
    for way in timed.values():
        step(*way, weight)  # what is computed once is computed now
    first = {name: step(*way, weight, counted=True) for name, way in timed.items()}
    plain, cut, ours = list(first.values())[:3]
    errors = [
        f"features within {float((x.features - plain.features).abs().max()):.1e}, gradient within "
        f"{float((x.gradient - plain.gradient).norm() / plain.gradient.norm()):.1e} relative"
        for x in (cut, ours)
    ]
    times: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(args.repeats):
        for name, way in timed.items():
            times[name].append(step(*way, weight).seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    slowest, most = medians["plain, 77 positions"], plain.flops
    lines = [
        f"| {name} | {seconds:.3f} | {slowest / seconds:.1f} | {first[name].flops / 1e9:.1f} "
        f"| {most / first[name].flops:.1f} |"
        for name, seconds in medians.items()
    ]
    size = f"width {args.width}, {args.layers} layers, {len(chosen)} names, {args.slots} slots, {args.threads} threads"
    equal = f"against 77 positions, shared context: cut: {errors[0]}; teachonce: {errors[1]}"
    head = [size, equal, "", "| way | seconds, median | speed | GFLOP | fewer |", "|---|---|---|---|---|"]
    sys.stdout.write("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
