"""How exactly the prompted towers equal plain ones: features and gradients of every structure, as a table.

    python benchmarks/equality.py [--student MODEL]

The plain towers are those of the tests: all 77 positions, or all tokens of the image, every letter of every slot
in every block, explicit attention. Each figure is the worst over depths 0 (all), 1 and L - 1, and over all positions of
the slots (text) or over closed, open and no gates (image). The gradient's is |g - g'| / |g'|, the worst of all trained
tensors. --student adds a real model's text tower, and its image tower where that can carry prompts. A second table has
small image towers of every family, without prompts against `encode_image` and with prompts in every letter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from teachonce.errors import UnsupportedModelError
from teachonce.models.clip import load_clip
from teachonce.models.learner import image_learner
from teachonce.models.prompts import Prompts
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.structures import Init, Position, Structure
from teachonce.towers.text_tower import TextTower

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import image_reference  # noqa: E402 - a helper of the tests
import tower_reference  # noqa: E402 - a helper of the tests

NAMES = ["tench", "great white shark", "jack-o'-lantern", "Boeing 747-400", "shark"]
Errors = tuple[float, float]
Case = Callable[[Structure], Errors]


def errors(computed: Tensor, plain: Tensor, leaves: list[Tensor]) -> Errors:
    """The largest difference of features, and the largest relative one of a gradient."""
    direction = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1)).to(plain)
    grads = [torch.autograd.grad((x * direction).sum(), leaves, retain_graph=True) for x in (computed, plain)]
    apart = [float((a - b).norm() / b.norm()) for a, b in zip(*grads, strict=True)]
    return float((computed - plain).detach().abs().max()), max(apart)


def worst(all_errors: Iterator[Errors]) -> Errors:
    """Return the largest value of both figures, each by itself."""
    features, gradients = zip(*all_errors, strict=True)
    return max(features), max(gradients)


def text_case(model: nn.Module, tokenizer: Any, positions: tuple[Position, ...]) -> Case:
    """Compare a text tower with the plain one over all positions."""
    tower = TextTower.from_clip(model, tokenizer)

    def cases(structure: Structure) -> Iterator[Errors]:
        for depth in (0, 1, tower.layers - 1):
            for position in positions:
                prompts = tower_reference.random_prompts(tower, structure, depth)
                computed = tower.features(prompts, tower.tokenise(NAMES, position=position))
                plain = tower_reference.plain_features(model, prompts, NAMES, position)
                yield errors(computed, plain, list(prompts.tensors().values()))

    return lambda structure: worst(cases(structure))


def image_case(model: nn.Module) -> Case:
    """Compare an image tower with the plain one over all tokens."""
    tower = ImageTower.from_clip(model)
    noise = torch.randn(2, 3, *tower.image_size, generator=torch.Generator().manual_seed(5))
    pixels = noise.to(tower.backbone.weight)

    def cases(structure: Structure) -> Iterator[Errors]:
        for depth in (0, 1, tower.layers - 1):
            starts: tuple[tuple[Init, float], ...] = (("normal", 0.7), ("template", 0.7), ("template", 0.0))
            for init, moved in starts:
                learner = image_learner(
                    tower, Prompts(structure=structure, init=init, image_length=3, image_depth=depth)
                )
                generator = torch.Generator().manual_seed(3)
                with torch.no_grad():
                    for name, parameter in learner.named_parameters():
                        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                        parameter.copy_((moved if name == "gate" else 0.7) * noise)
                prompts = learner()
                # With closed gates the other parameters have no gradient.
                leaves = [p for n, p in learner.named_parameters() if moved or n == "gate"]
                plain = image_reference.plain_features(model, prompts, pixels)
                yield errors(tower.features(prompts, pixels), plain, leaves)

    return lambda structure: worst(cases(structure))


def family_row(kind: str) -> Iterator[float]:
    """Compare a small image tower of one family: double precision, then single; without prompts, then with them."""
    for model in (image_reference.build(kind).double(), image_reference.build(kind)):
        tower: Any = ImageTower.from_clip(model)
        noise = torch.randn(4, 3, *tower.image_size, generator=torch.Generator().manual_seed(5))
        pixels = noise.to(tower.backbone.weight)
        with torch.no_grad():
            theirs = model.encode_image(pixels, normalize=True)  # type: ignore[operator]
            yield float((tower.features(None, pixels) - theirs).abs().max())
        structures: tuple[Structure, ...] = ("qkvr", "unshared-replace")
        yield from worst(image_case(model)(structure) for structure in structures)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", help="a model as open_clip names it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    everywhere: tuple[Position, ...] = get_args(Position)
    tokenizer = tower_reference.tokenizer()
    columns: dict[str, Case] = {
        "text, float64": text_case(tower_reference.tiny_clip("laion").double(), tokenizer, everywhere),
        "text, float32": text_case(tower_reference.tiny_clip("openai"), tokenizer, everywhere),
        "image, float64": image_case(image_reference.build("laion").double()),
        "image, float32": image_case(image_reference.build("openai")),
    }
    if args.student:
        clip = load_clip(args.student)
        columns["student's text, float32"] = text_case(clip.model, clip.tokenizer, ("before",))
        try:
            columns["student's image, float32"] = image_case(clip.model)
        except UnsupportedModelError as problem:
            sys.stderr.write(f"no image tower to compare: {problem}\n")
    head = "".join(f" {name}: features | gradient |" for name in columns)
    sys.stdout.write(f"| structure |{head}\n{'|---' * (1 + 2 * len(columns))}|\n")
    for structure in get_args(Structure):
        cells = "".join(f" {a:.1e} | {b:.1e} |" for a, b in (case(structure) for case in columns.values()))
        sys.stdout.write(f"| {structure} |{cells}\n")
    parts = "features without prompts | with prompts | gradient |"
    sys.stdout.write(f"\n| image tower | float64: {parts} float32: {parts}\n{'|---' * 7}|\n")
    for kind in image_reference.KINDS:
        cells = "".join(f" {error:.1e} |" for error in family_row(kind))
        sys.stdout.write(f"| {kind} |{cells}\n")


if __name__ == "__main__":
    main()
