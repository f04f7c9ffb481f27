"""The recipe that made the two shipped demo models: a short warm-up, then plain CLIP training on the made-up world.

The demo itself runs none of this: it unpacks the result. Training draws no image that the demo teaches or tests on.

Both models read every class name, the held-out ones too, as a web-scale CLIP has. The student is weaker by design: a
smaller tower at a lower resolution, fewer steps, and web-like captions that drop words or use the wrong ones.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch.nn import functional

from teachonce.core.progress import Reporter
from teachonce.demo.models import CONTEXT_LENGTH, model_config, pack_state
from teachonce.demo.world import COLOURS, SHAPES, TEXTURES, WorldClass, render_image, world_classes

Pool = NDArray[np.uint8]
"""Images of every class: [classes, images of a class, height, width, 3]."""

TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Captions:
    """How a model's training captions are worded.

    `exact` and `loose` hold `{}` for the name. With these chances a caption leaves out the colour, leaves out the
    texture, turns the words round ("striped circle in red"), or belongs to another image altogether. Half of the
    captions are loose if there are loose wordings; a loose caption calls the texture or the shape by a neighbour's
    word.
    """

    exact: tuple[str, ...]
    loose: tuple[str, ...] = ()
    no_colour: float = 0.0
    no_texture: float = 0.0
    turned: float = 0.0
    wrong: float = 0.0
    loose_texture: float = 0.0
    loose_shape: float = 0.0


_PHOTO_WORDINGS = (TEMPLATE, "a photo of the {}.", "a picture of the {}.", "an image of a {}.")
TEACHER_CAPTIONS = Captions(
    (*_PHOTO_WORDINGS, "a drawing of the {}.", "a {}.", "{}"), no_colour=0.02, no_texture=0.02, turned=0.05
)
# The student met the usual wordings on careless captions and others on careful ones, as alt texts and catalogues
# differ on the web. The hand-written template is therefore not its best context: that is what prompts can find.
STUDENT_CAPTIONS = Captions(
    ("my {}", "a small {} here", "one {} on a wall", "is this a {}?", "the {} and some other things"),
    loose=_PHOTO_WORDINGS,
    no_colour=0.1,
    no_texture=0.15,
    turned=0.25,
    wrong=0.05,
    loose_texture=0.36,
    loose_shape=0.28,
)
_MORE_WORDS = "a bad good cropped close-up blurry bright dark clean large one many this it with shape object"


@dataclass(frozen=True)
class ModelRecipe:
    """How one model is trained: `warm_up` steps of 64 images, then `contrast` steps of `batch` distinct classes."""

    name: str
    captions: Captions
    warm_up: int
    contrast: int
    batch: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class TrainSizes:
    """How many images are drawn and how long training takes. The defaults made the shipped models."""

    images_per_class: int = 120
    teacher_warm_up: int = 2600
    teacher_contrast: int = 300
    student_warm_up: int = 2600
    student_contrast: int = 300
    batch: int = 192
    check_images_per_class: int = 5

    def recipes(self) -> tuple[ModelRecipe, ModelRecipe]:
        """Return the recipes of teacher and student."""
        return (
            ModelRecipe("teacher", TEACHER_CAPTIONS, self.teacher_warm_up, self.teacher_contrast, self.batch, seed=1),
            ModelRecipe("student", STUDENT_CAPTIONS, self.student_warm_up, self.student_contrast, self.batch, seed=2),
        )


@dataclass(frozen=True)
class TrainedModel:
    """One packed file, with its zero-shot top-1 (a fraction) over the seen and over the held-out classes."""

    file: Path
    seen_top1: float
    unseen_top1: float
    first_loss: float
    last_loss: float
    seconds: float


def train_demo_models(folder: Path, sizes: TrainSizes, reporter: Reporter) -> tuple[TrainedModel, TrainedModel]:
    """Train teacher and student and write `demo-teacher.safetensors` and `demo-student.safetensors` into `folder`.

    The same machine, thread count and package versions give the same weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pool = draw_pool("recipe", sizes.images_per_class, reporter)
    check = draw_pool("val", sizes.check_images_per_class, reporter)
    teacher, student = (_train_one(recipe, pool, check, folder, reporter) for recipe in sizes.recipes())
    return teacher, student


def draw_pool(split: str, images_per_class: int, reporter: Reporter) -> Pool:
    """Draw images of all classes, uint8 [320, images_per_class, 40, 40, 3]."""
    drawn = []
    for item in world_classes():
        drawn.append(np.stack([render_image(item, index, split=split) for index in range(images_per_class)]))
        reporter.progress(f"drawing {split} images", len(drawn), len(world_classes()), "classes")
    return np.stack(drawn)


def demo_token_ids() -> tuple[int, ...]:
    """Return the ids of all tokens in the packed models, ascending: class names, caption words, start and end."""
    templates = [*TEACHER_CAPTIONS.exact, *STUDENT_CAPTIONS.exact, *STUDENT_CAPTIONS.loose, *_MORE_WORDS.split()]
    texts = [item.name for item in world_classes()] + [text.replace("{}", "") for text in templates]
    # Punctuation joins on to a word in some templates ("circle.", "wall"), so single marks are added by themselves.
    tokens = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)([*texts, ".", "?", ",", "in"])
    return tuple(int(token) for token in torch.unique(tokens))


def caption(item: WorldClass, style: Captions, rng: random.Random) -> str:
    """Word one caption of an image of this class."""
    if rng.random() < style.wrong:
        item = rng.choice(world_classes())
    colour, texture, shape, templates = item.colour, item.texture, item.shape, style.exact
    if style.loose and rng.random() < 0.5:
        templates = style.loose
        texture = _neighbour(texture, TEXTURES) if rng.random() < style.loose_texture else texture
        shape = _neighbour(shape, SHAPES) if rng.random() < style.loose_shape else shape
    colour = "" if rng.random() < style.no_colour else colour
    texture = "" if rng.random() < style.no_texture else texture
    turned = colour and rng.random() < style.turned
    name = f"{texture} {shape} in {colour}" if turned else f"{colour} {texture} {shape}"
    return rng.choice(templates).replace("{}", " ".join(name.split()))


def _neighbour(word: str, words: Sequence[str]) -> str:
    """Return always the same other word, so that carelessness is a habit, which does not average out."""
    return words[(words.index(word) + 1) % len(words)]


def image_features(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Compute unit features [n, embed_dim] of preprocessed images [n, 3, size, size]."""
    return functional.normalize(model.encode_image(images), dim=-1)


def text_features(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Compute unit features [n, embed_dim] of tokens int64 [n, context length].

    This is open_clip's encode_text without the positions after the end of the longest text, which cannot reach that
    end.
    """
    ends = tokens.argmax(dim=-1)  # the end token has the highest id
    length = int(ends.max()) + 1
    states = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    states = model.transformer(states, attn_mask=model.attn_mask[:length, :length])
    pooled = model.ln_final(states[torch.arange(len(states)), ends]) @ model.text_projection
    return functional.normalize(pooled, dim=-1)


def prepare(pixels: Pool, image_size: int) -> torch.Tensor:
    """Do for a batch what the model's own evaluation transform does.

    Args:
        pixels: uint8 [n, height, width, 3].

    Returns:
        float32 [n, 3, image_size, image_size] in [-1, 1], channels last in memory.
    """
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    if images.shape[-1] != image_size:
        images = functional.interpolate(images, size=image_size, mode="bicubic", antialias=True).clamp(0, 255)
    return (images / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _train_one(recipe: ModelRecipe, pool: Pool, check: Pool, folder: Path, reporter: Reporter) -> TrainedModel:
    started = time.monotonic()
    config = model_config(recipe.name)
    size = int(config["model_cfg"]["vision_cfg"]["image_size"])
    with torch.random.fork_rng(devices=[]):  # the caller's own random numbers stay as they were
        torch.manual_seed(recipe.seed)
        model = open_clip.CLIP(**_typed(config["model_cfg"])).to(memory_format=torch.channels_last)
        _warm_up(model, recipe, pool, size, reporter)
        losses = _contrast(model, recipe, pool, size, reporter)
    file = folder / f"demo-{recipe.name}.safetensors"
    pack_state(config, model.state_dict(), demo_token_ids(), file)
    seen, unseen = zero_shot(model, check, size)
    seconds = time.monotonic() - started
    reporter.note(f"{recipe.name}: top-1 {seen:.3f} seen, {unseen:.3f} held out, {seconds:.0f} s, {file}")
    return TrainedModel(file, seen, unseen, losses[0], losses[-1], seconds)


def _typed(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """Make open_clip's own config objects, which its CLIP class asks for."""
    vision, text = open_clip.CLIPVisionCfg(**model_cfg["vision_cfg"]), open_clip.CLIPTextCfg(**model_cfg["text_cfg"])
    return {"embed_dim": model_cfg["embed_dim"], "vision_cfg": vision, "text_cfg": text}


def _steps(count: int, peak: float, parameters: Sequence[torch.nn.Parameter]) -> Iterator[torch.optim.Optimizer]:
    """Yield an AdamW optimizer `count` times: short warm-up of the rate, then cosine to a hundredth."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    for step in range(count):
        rate = peak * min(1.0, (step + 1) / 40) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / count)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        yield optimizer


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def _pick(pool: Pool, classes: NDArray[np.int64], size: int, rng: np.random.Generator) -> torch.Tensor:
    """Pick one random image of each class; the whole batch is moved by up to two pixels."""
    images = pool[classes, rng.integers(0, pool.shape[1], len(classes))]
    shift = rng.integers(-2, 3, 2)
    return prepare(np.roll(images, (int(shift[0]), int(shift[1])), axis=(1, 2)), size)


def _warm_up(model: Any, recipe: ModelRecipe, pool: Pool, size: int, reporter: Reporter) -> None:
    """Teach the image tower colour, texture and shape with a linear head that is thrown away.

    Contrastive training alone gets there too, but spends most of its time on colour, which is the easiest to tell.
    """
    names = (tuple(COLOURS), TEXTURES, SHAPES)
    items = world_classes()
    words = [(item.colour, item.texture, item.shape) for item in items]
    truth = torch.tensor([[names[part].index(word) for part, word in enumerate(three)] for three in words])
    head = torch.nn.Linear(model.text_projection.shape[1], sum(map(len, names)))
    rng = np.random.default_rng(recipe.seed)
    model.train()
    parameters = [*model.visual.parameters(), *head.parameters()]
    for step, optimizer in enumerate(_steps(recipe.warm_up, 3e-3, parameters)):
        classes = rng.integers(0, len(items), 64)
        scores = head(model.encode_image(_pick(pool, classes, size, rng))).split([len(n) for n in names], dim=1)
        targets = truth[torch.from_numpy(classes)]
        losses = [functional.cross_entropy(score, targets[:, part]) for part, score in enumerate(scores)]
        loss = torch.stack(losses).sum()
        _descend(optimizer, loss)
        if step % 50 == 49:
            reporter.progress(f"{recipe.name}: warm-up", step + 1, recipe.warm_up, "steps", loss=loss.item())


def _contrast(model: Any, recipe: ModelRecipe, pool: Pool, size: int, reporter: Reporter) -> list[float]:
    """Train as CLIP does; the classes of a batch are distinct, so that no caption is a false negative by itself."""
    rng, words = np.random.default_rng(recipe.seed + 100), random.Random(recipe.seed)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    items, losses = world_classes(), []
    diagonal = torch.arange(recipe.batch)
    model.train()
    for step, optimizer in enumerate(_steps(recipe.contrast, 2e-3, list(model.parameters()))):
        classes = rng.permutation(len(items))[: recipe.batch]
        captions = [caption(items[index], recipe.captions, words) for index in classes]
        images = image_features(model, _pick(pool, classes, size, rng))
        logits = model.logit_scale.exp() * images @ text_features(model, tokenizer(captions)).T
        loss = (functional.cross_entropy(logits, diagonal) + functional.cross_entropy(logits.T, diagonal)) / 2
        _descend(optimizer, loss)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
        if step % 20 == 19:
            reporter.progress(f"{recipe.name}: contrast", step + 1, recipe.contrast, "steps", loss=losses[-1])
    return losses


def zero_shot(model: Any, check: Pool, size: int) -> tuple[float, float]:
    """Return top-1 with the hand-written template: seen classes among seen names, held-out among held-out names."""
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    items = world_classes()
    model.eval()
    accuracies = []
    with torch.inference_mode():
        for seen in (True, False):
            chosen = [item for item in items if item.seen is seen]
            texts = text_features(model, tokenizer([TEMPLATE.replace("{}", item.name) for item in chosen]))
            hits = [
                (image_features(model, prepare(check[item.index], size)) @ texts.T).argmax(dim=-1) == label
                for label, item in enumerate(chosen)
            ]
            accuracies.append(torch.cat(hits).float().mean().item())
    return accuracies[0], accuracies[1]
