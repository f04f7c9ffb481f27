"""Forward and backward of the prompted text tower against the plain way over the full context, in one run.

    python benchmarks/text_tower.py [--width 512 --layers 12 --names 64 --repeats 5 --threads 1]

The plain way replaces the slots in the embedded text and runs open_clip's own blocks over all positions. Both start
from the same context vectors and must give the same features and gradients: the errors are printed beside the times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import open_clip
import torch
from torch import Tensor

from teachonce.text_tower import NameTokens, SlotPrompts, TextTower
from teachonce.vocabulary import load_vocabulary

CONTEXT = "a photo of a"


def build(width: int, layers: int) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer]:
    """A CLIP with random weights, a small image tower and an OpenAI-style text tower."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, head_width=32, patch_size=16, image_size=32)
    text = open_clip.CLIPTextCfg(width=width, heads=width // 64, layers=layers)
    return open_clip.CLIP(width, vision, text, quick_gelu=True).eval(), open_clip.SimpleTokenizer()


def plain_features(model: open_clip.CLIP, tokens: Tensor, context: Tensor) -> Tensor:
    """CoOp's way: context vectors put into the embedded text, every position of every layer computed."""
    slots = len(context)
    embedded = model.token_embedding(tokens)
    x = torch.cat([embedded[:, :1], context.expand(len(tokens), -1, -1), embedded[:, 1 + slots :]], dim=1)
    x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
    pooled = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection
    return torch.nn.functional.normalize(pooled, dim=-1)


def gradient(compute: Callable[[Tensor], Tensor], context: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """Features, gradient of a fixed linear loss, and seconds of forward and backward."""
    leaf = context.clone().requires_grad_()
    began = time.perf_counter()
    features = compute(leaf)
    (features * weight).sum().backward()
    seconds = time.perf_counter() - began
    assert leaf.grad is not None
    return features.detach(), leaf.grad, seconds


def main() -> None:
    """Check equality, then time both sides by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 512), ("layers", 12), ("names", 64), ("repeats", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = build(args.width, args.layers)
    names = load_vocabulary("timm:imagenet22k/first-lemma").names
    chosen = list(dict.fromkeys(name.lower() for name in names[:: len(names) // (2 * args.names)]))[: args.names]
    tower = TextTower.from_clip(model, tokenizer)
    ours: NameTokens = tower.tokenise(chosen)
    tokens = tokenizer([f"{CONTEXT} {name}." for name in chosen])
    context = tower.embed_words(CONTEXT).detach()
    weight = torch.randn(len(chosen), args.width)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "plain, 77 positions": lambda leaf: plain_features(model, tokens, leaf),
        "teachonce": lambda leaf: tower.features(SlotPrompts(context=leaf), ours),
    }
    found = {name: gradient(way, context, weight) for name, way in ways.items()}
    plain, exact = found.values()
    feature_error = float((plain[0] - exact[0]).abs().max())
    gradient_error = float((plain[1] - exact[1]).norm() / plain[1].norm())
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            times[name].append(gradient(way, context, weight)[2])
    medians = {name: statistics.median(values) for name, values in times.items()}
    slowest = max(medians.values())
    lines = [f"| {name} | {seconds:.3f} | {slowest / seconds:.1f} |" for name, seconds in medians.items()]
    size = (
        f"width {args.width}, {args.layers} layers, {len(chosen)} names, {len(context)} slots, {args.threads} threads"
    )
    head = [f"{size}; features equal to {feature_error:.1e}, gradient to {gradient_error:.1e} relative", "",
            "| way | seconds, median | speed |", "|---|---|---|"]  # fmt: skip
    sys.stdout.write("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
