"""Cases `step` and `until`: steps from a store's cache against steps that do the same work on images each time.

Both sides are the same code of `teachonce.training.trainer`; only where a batch comes from differs. Evaluation is not
timed.

Shapes: B rows, k classes a row, E the student's embedding.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from train_parts import GIGA, StepResult, by_turns, count_flops, same_prompts, say, seconds_of, step_of, table

from teachonce.core.devices import pick_device
from teachonce.core.progress import Silent
from teachonce.data.views import EVALUATION, View
from teachonce.labels.codec import CodecTables, decode, decode_embeddings, encode, encode_embeddings, max_error
from teachonce.labels.format import LABELS
from teachonce.labels.store import LabelStore
from teachonce.models.clip import LoadedClip, load_clip
from teachonce.models.spec import EmbeddingKind
from teachonce.recipe.config import TrainConfig
from teachonce.rows.images import ViewImages
from teachonce.rows.working_set import Batch, WorkingSet, open_working_set
from teachonce.teaching.teacher import head_of, soft_labels
from teachonce.training.held_out import measure
from teachonce.training.trainer import Trainer

AT_ONCE = 256  # images that are in a tower at once
CACHE, STUDENT, TEACHER = "from cache", "+ student's images", "+ student and teacher"


@dataclass(frozen=True)
class TwoModels(LoadedClip):
    """The inputs of two models from one decoded image, end to end: [1, 1, n]."""

    other: LoadedClip | None = None

    def prepare(self, image: Image.Image) -> Tensor:
        """Prepare a photo's evaluation inputs for both models."""
        return self._together(image, EVALUATION)

    def prepare_view(self, image: Image.Image, view: View) -> Tensor:
        """Prepare one view for both models."""
        return self._together(image, view)

    def apart(self, pixels: Tensor) -> list[Tensor]:
        """Return the inputs of each model, [B, 3, H, W], from [B, 1, 1, n]."""
        grey = Image.new("RGB", (64, 64))
        shapes = [part.shape for part in self._inputs(grey, EVALUATION)]
        parts = torch.split(pixels.flatten(1), [shape.numel() for shape in shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _together(self, image: Image.Image, view: View) -> Tensor:
        return torch.cat([part.flatten() for part in self._inputs(image, view)])[None, None]

    def _inputs(self, image: Image.Image, view: View) -> list[Tensor]:
        parts = [super().prepare_view(image, view)]
        return parts if self.other is None else [*parts, self.other.prepare_view(image, view)]


class ImageRows:
    """A working set whose student features, and with a teacher whose top k, are made from images when asked for.

    `live` = False: batches come from the cache, as for evaluation. `stored_form`: what is made is rounded as a store
    does it, for the proof that both sides are equal.
    """

    def __init__(self, rows: WorkingSet, images: ViewImages, student: LoadedClip, teacher: LoadedClip | None) -> None:
        self._rows, self._images, self._student, self._teacher = rows, images, student, teacher
        self._models = two_models(student, teacher)
        self._head = head_of(rows.class_embeddings, rows.teacher_scale, str(student.device))
        fingerprint = rows.plan.store.groups[LABELS].fingerprint
        # The kind is set where labels were made from coded embeddings.
        self._kind: EmbeddingKind | None = fingerprint.get("embedding_kind")
        if teacher is not None and fingerprint["teacher_digest"] != teacher.digest:
            raise SystemExit(f"{rows.plan.store.path} was not taught by {teacher.spec}")
        self.live, self.stored_form = True, False
        self.seconds: dict[str, list[float]] = {"images": [], "student": [], "teacher": []}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def tables(self) -> CodecTables:
        """Return what the store codes with; the order of classes changes no value."""
        return CodecTables(np.arange(len(self._rows.vocabulary)), self._rows.plan.store.gap_levels)

    def batch(self, places: np.ndarray) -> Batch:
        """Return rows, with labels from the cache and the rest from the images."""
        stored = self._rows.batch(places)
        if not self.live:
            return stored
        with self._timed("images"):
            parts = self._models.apart(self._images.pixels(stored.row))
        with self._timed("student"):
            features = _encoded(self._student, parts[0]).cpu().numpy()
        made = replace(stored, features=features.astype(np.float16) if self.stored_form else features)
        if self._teacher is None:
            return made
        with self._timed("teacher"):
            embeddings = _encoded(self._teacher, parts[1])
            if self.stored_form and self._kind is not None:
                coded = decode_embeddings(encode_embeddings(embeddings.cpu().numpy(), self._kind))
                embeddings = torch.from_numpy(coded).to(embeddings.device)
            labels = soft_labels(self._head.logits(embeddings), stored.class_ids.shape[1], self._rows.temperatures)
        if self.stored_form:
            labels = decode(encode(labels, self.tables), self.tables)
        return replace(
            made,
            class_ids=labels.class_ids.astype(np.int32),
            log_probs=labels.log_probs,
            log_residual=labels.log_residual,
        )

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[part].append(time.perf_counter() - began)


def two_models(student: LoadedClip, teacher: LoadedClip | None) -> TwoModels:
    """Return the student as the one who prepares images, for the teacher too."""
    fields = {name: value for name, value in vars(student).items() if not name.startswith("_")}
    return TwoModels(**fields, other=teacher)


def _encoded(clip: LoadedClip, pixels: Tensor) -> Tensor:
    """Compute unit image features, [B, E]; on a GPU this waits for them."""
    features = torch.cat([clip.encode_images(part) for part in torch.split(pixels, AT_ONCE)])
    if features.is_cuda:
        torch.cuda.synchronize(features.device)
    return features


@dataclass(frozen=True, eq=False)
class Sides:
    """The same run three ways."""

    trainers: dict[str, Trainer]
    made: dict[str, ImageRows]

    @property
    def device(self) -> torch.device:
        """The device of the runs."""
        return self.trainers[CACHE].device


@contextlib.contextmanager
def sides(args: argparse.Namespace, config: TrainConfig) -> Iterator[Sides]:
    """Open the store, load both models, build the runs."""
    store, device = LabelStore.open(args.labels), pick_device()
    student, teacher = (load_clip(spec, device) for spec in (args.student, args.teacher))
    rows = open_working_set(store, student.digest, Silent())
    with contextlib.ExitStack() as stack:
        stack.callback(rows.close)
        made: dict[str, ImageRows] = {}
        for name, other in ((STUDENT, None), (TEACHER, teacher)):
            views = ViewImages(store, args.root, two_models(student, other), args.threads)
            made[name] = ImageRows(rows, stack.enter_context(views), student, other)
        sources = {CACHE: rows, **{name: cast(WorkingSet, source) for name, source in made.items()}}
        yield Sides({name: Trainer(config, student, source) for name, source in sources.items()}, made)


def step_config(args: argparse.Namespace, vocabulary: int, **changes: Any) -> TrainConfig:
    """Configure a step: the candidates are the labels and a uniform fill, which a rounded target cannot change."""
    few = args.candidates < vocabulary
    return TrainConfig.of(
        structure=args.structure,
        batch_size=args.batch,
        candidates="sampled" if few else "all",
        sampled_fill=args.candidates,
        sampled_top=0,
        seed=args.seed,
        **changes,
    )


def step_case(args: argparse.Namespace) -> None:
    """Compare a whole step from cache with the same step that does the images' part itself."""
    vocabulary = LabelStore.open(args.labels).layout.classes
    with sides(args, step_config(args, vocabulary)) as both:
        trainers, numbers = both.trainers, dict.fromkeys(both.trainers, 0)
        runs = list(trainers.values())

        def one(name: str) -> StepResult:
            result = step_of(trainers[name], numbers[name])
            numbers[name] += 1
            return result

        flops = {name: count_flops(partial(one, name)) for name in trainers}
        same_prompts(runs)
        first = {name: one(name) for name in trainers}
        same_prompts(runs)
        rounded = _rounded(both, numbers, one)
        for source in both.made.values():
            source.seconds = {part: [] for part in source.seconds}
        times = by_turns({name: partial(one, name) for name in trainers}, args.repeats, both.device)
        say(
            f"### step: batch {args.batch}, {first[CACHE].candidates:,} candidates of {vocabulary:,} classes, "
            f"{args.structure}, {args.threads} threads"
        )
        rows = []
        for name, seconds in times.items():
            parts = both.made[name].seconds if name in both.made else {}
            shares = [f"{1000 * np.median(x):,.0f}" if x else "" for x in parts.values()] or [""] * 3
            rows.append(
                [
                    name,
                    f"{seconds:.3f}",
                    f"{seconds / times[CACHE]:.1f}",
                    f"{flops[name] / GIGA:,.1f}",
                    f"{flops[name] / flops[CACHE]:.1f}",
                    *shares,
                ]
            )
        table(
            [
                "the step",
                "seconds, median",
                "over from cache",
                "GFLOP",
                "over from cache",
                "reading and decoding, ms",
                "student, ms",
                "teacher and top k, ms",
            ],
            rows,
        )
        say("Nothing is decoded ahead of its step; the column says what further cores could hide of it.")
        _say_equality(first, rounded)
        _say_targets(both, numbers[CACHE])


def _rounded(both: Sides, numbers: dict[str, int], one: Callable[[str], StepResult]) -> dict[str, StepResult]:
    """Run a step of each side with what is made from images rounded as the store rounds it."""
    for source in both.made.values():
        source.stored_form = True
    result = {name: one(name) for name in numbers}
    for source in both.made.values():
        source.stored_form = False
    same_prompts(list(both.trainers.values()))
    return result


def _say_equality(first: dict[str, StepResult], rounded: dict[str, StepResult]) -> None:
    rows = []
    for name in (STUDENT, TEACHER):
        errors = [*first[name].apart(first[CACHE]), *rounded[name].apart(rounded[CACHE])]
        rows.append([name, *(f"{error:.1e}" for error in errors)])
    table(
        [
            "differs from the step from cache by, relative",
            "loss",
            "gradients",
            "loss, made values rounded as stored",
            "gradients, likewise",
        ],
        rows,
    )


def _say_targets(both: Sides, step: int) -> None:
    """Print how far the stored targets are from those made in the step."""
    source = both.made[TEACHER]
    places = both.trainers[CACHE].order.at(step)[1]
    made, stored = source.batch(places), both.trainers[CACHE].rows.batch(places)
    features = np.abs(cast(Any, made.features) - cast(Any, stored.features).astype(np.float32)).max()
    orders = [np.argsort(batch.class_ids, axis=1) for batch in (made, stored)]
    ids, old_ids = (np.take_along_axis(b.class_ids, o, 1) for b, o in zip((made, stored), orders, strict=True))
    same = (ids == old_ids).all(axis=1)
    bound = max_error(made.log_probs, source.tables)
    new, old, most = (
        np.take_along_axis(x, o, 1)[same]
        for x, o in ((made.log_probs, orders[0]), (stored.log_probs, orders[1]), (bound, orders[0]))
    )
    error = np.abs(new - old)
    say(
        f"Stored student features differ by at most {features:.1e}. {same.sum()} of {len(same)} rows have the same top "
        f"{ids.shape[1]} classes; there log p differs by at most {error.max():.1e}, {(error / most).max():.2f} of the "
        "error that the codec states for the value. Above 1: its labels were made from coded embeddings, by `relabel`."
    )


def until_case(args: argparse.Namespace) -> None:
    """Do the same run both ways, step by step in turn, until the same accuracy on held-out samples."""
    vocabulary = LabelStore.open(args.labels).layout.classes
    config = step_config(args, vocabulary, held_out=args.held_out, steps=args.most_steps)
    with sides(args, config) as both:
        compared = {name: both.trainers[name] for name in (CACHE, TEACHER)}
        for source in both.made.values():
            source.live = False
        starts = {name: measure(trainer).top1 for name, trainer in compared.items()}
        runs = {name: _Until(trainer, both.made.get(name), args) for name, trainer in compared.items()}
        for step in range(args.most_steps):
            for run in runs.values():
                run.take(step)
            if all(run.reached for run in runs.values()):
                break
    say(
        f"### until: top-1 of {args.target} on {len(both.trainers[CACHE].order.held_out)} held-out rows, batch "
        f"{args.batch}, measured every {args.every} steps, {args.threads} threads"
    )
    base = runs[CACHE].seconds
    table(
        ["run", "steps", "seconds", "over from cache", "top-1 before", "top-1 then", "last loss"],
        [
            [
                name,
                str(run.steps),
                f"{run.seconds:.1f}",
                f"{run.seconds / base:.1f}",
                f"{starts[name]:.4f}",
                f"{run.top1:.4f}" + ("" if run.reached else " (not reached)"),
                f"{run.loss:.4f}",
            ]
            for name, run in runs.items()
        ],
    )
    say(
        "Measuring is not timed, and images are not decoded ahead. Making the store, once for all runs, takes about as "
        "long as the slow side's images of one epoch."
    )


class _Until:
    """A run on its way to an accuracy."""

    def __init__(self, trainer: Trainer, made: ImageRows | None, args: argparse.Namespace) -> None:
        self._trainer, self._made, self._args = trainer, made, args
        self.steps, self.seconds, self.top1, self.loss, self.reached = 0, 0.0, 0.0, 0.0, False

    def take(self, step: int) -> None:
        """Do one more step, unless the run has reached its accuracy."""
        if self.reached:
            return
        self._live(True)
        self.seconds += seconds_of(lambda: self._step(step), self._trainer.device)
        self._live(False)
        self.steps = step + 1
        if self.steps % self._args.every == 0:
            self.top1 = measure(self._trainer).top1
            self.reached = self.top1 >= self._args.target

    def _step(self, step: int) -> None:
        self.loss = self._trainer.step(step)["loss"]

    def _live(self, live: bool) -> None:
        if self._made is not None:
            self._made.live = live
