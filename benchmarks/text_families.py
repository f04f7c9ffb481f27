"""What a class name costs in text towers without a causal mask, against the causal tower's short cuts.

    python benchmarks/text_families.py [--names N] [--repeats N]

All towers are random, with 12 blocks of width 512, so that a ratio is about the mask and the context length and nothing
else: forward and backward for names of ImageNet-21K with four slots, one thread. `kept` is what a name keeps for the
backward pass, which `class_chunk` names do at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import open_clip
import torch
from torch import Tensor
from train_parts import GIGA, by_turns, count_flops, say, some_names, table
from train_towers import some_prompts

from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Structure
from teachonce.towers.text_tower import TextTower
from teachonce.towers.tokens import NameTokens

MIB = 2**20
SLOTS = 4
STRUCTURES: tuple[Structure, ...] = ("shared", "unshared", "unshared-replace")
# What the tower is like, and its text config.
TOWERS = {
    "causal, 77 positions (CLIP)": {},
    "causal with a class token, 76 (CoCa)": {"context_length": 76, "embed_cls": True},
    "no mask, 77 (MobileCLIP S1, S2; MobileCLIP2)": {"no_causal_mask": True},
    "no mask, 64 (SigLIP, SigLIP2)": {"no_causal_mask": True, "context_length": 64, "pool_type": "last"},
    "no mask, 32 (CLIPA)": {"no_causal_mask": True, "context_length": 32, "pool_type": "last"},
    "no mask, 16 (SigLIP SO400M/14)": {"no_causal_mask": True, "context_length": 16, "pool_type": "last"},
}


def made_up_tower(text: dict[str, object]) -> TextTower:
    """Make a random tower of the size of ViT-B/16's."""
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    model = open_clip.CustomTextCLIP(512, vision, {"width": 512, "heads": 8, "layers": 12, **text})
    return TextTower.from_clip(model.eval(), open_clip.SimpleTokenizer())


def pulled(tower: TextTower, prompts: SlotPrompts, names: NameTokens) -> None:
    """Do one forward and backward pass."""
    leaves = prompts.apply(lambda x: x.detach().requires_grad_())
    torch.autograd.grad(tower.features(leaves, names).sum(), list(leaves.tensors().values()))


def kept_bytes(tower: TextTower, work: Callable[[], object]) -> int:
    """Count the bytes that a forward pass keeps for its backward pass, each storage once, frozen weights not."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for block in tower.parts.blocks for p in block.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    given, rows = some_names(args.names), []
    towers = {name: made_up_tower(text) for name, text in TOWERS.items()}
    for structure in STRUCTURES:
        ways: dict[str, Callable[[], object]] = {}
        for name, tower in towers.items():
            prompts = some_prompts(tower, structure, SLOTS)
            ways[name] = partial(pulled, tower, prompts, tower.tokenise(given, slots=SLOTS))
            ways[name]()
        seconds = by_turns(ways, args.repeats, torch.device("cpu"))
        flops = {name: count_flops(work) for name, work in ways.items()}
        kept = {name: kept_bytes(towers[name], work) for name, work in ways.items()}
        first = next(iter(ways))
        for name in ways:
            figures = [
                f"{1000 * seconds[name] / args.names:.1f}",
                f"{seconds[name] / seconds[first]:.1f}",
                f"{flops[name] / args.names / GIGA:.2f}",
                f"{flops[name] / flops[first]:.1f}",
                f"{kept[name] / args.names / MIB:.1f}",
                f"{kept[name] / kept[first]:.1f}",
            ]
            rows.append([structure, name, *figures])
    say(f"### a name in towers with and without a mask: {args.names} names, {SLOTS} slots, one thread")
    head = ["structure", "tower", "ms a name", "over causal", "GFLOP a name", "over causal", "kept, MiB", "over causal"]
    table(head, rows)


if __name__ == "__main__":
    main()
