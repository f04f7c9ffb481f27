"""A step's gradient is that of the whole loss written plainly, and its update is the optimiser's own formula.

The reference (`step_reference`) is float64 over the whole vocabulary, so what is compared is every weight, temperature
and draw between the config and the parameters, not the parts, which have tests of their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from step_cases import BASE, CASES, DRAWN, STEP, STEPS
from step_reference import PlainStep, Told
from torch import Tensor
from update_reference import adamw, norm_of, sgd
from worlds import World

from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.labels.store import LabelStore
from teachonce.losses.candidates import sampled_candidates
from teachonce.models.clip import LoadedClip
from teachonce.recipe.config import TrainConfig
from teachonce.rows.images import ViewImages
from teachonce.rows.order import TrainingOrder
from teachonce.rows.working_set import Batch, WorkingSet, open_working_set
from teachonce.training.schedule import optimizer_of
from teachonce.training.trainer import Trainer
from teachonce.training.two_pass import PoissonSample

PRECISE = 1e-4  # float32 against float64, of a gradient's length; 1e-5 was found


@dataclass(frozen=True, eq=False)
class Bench:
    """What every run of this module works on."""

    clip: LoadedClip
    rows: WorkingSet
    images: ViewImages

    def trainer(self, moved: int | None = 0, **options: Any) -> Trainer:
        """A run whose parameters were moved away from zero by a draw of that seed; None: as it begins."""
        config = TrainConfig.of(**(BASE | options))
        trainer = Trainer(config, self.clip, self.rows, None if not config.prompts.in_images else self.images)
        if moved is not None:
            generator = torch.Generator().manual_seed(moved)
            with torch.no_grad():
                for parameter in trainer.learners.parameters():
                    parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        return trainer

    def plain(self, **options: Any) -> PlainStep:
        """The same run by the reference."""
        config = TrainConfig.of(**(BASE | options))
        learners = self.trainer(None, **options).learners
        return PlainStep(
            config, self.clip, self.rows, learners, None if not config.prompts.in_images else self.images.pixels
        )

    def both(self, step: int = STEP, moved: int = 0, **options: Any) -> tuple[Trainer, dict[str, float], Told]:
        """One step of a run, what it reported, and the same by the reference."""
        trainer, plain = self.trainer(moved, **options), self.plain(**options)
        config = trainer.config
        order = TrainingOrder(
            self.rows.row_column, 2, config.loop.batch_size, config.loop.views_per_step, config.loop.seed, 0.0
        )
        before, batch = named(trainer), self.rows.batch(order.at(step)[1])
        return trainer, trainer.step(step), plain.at(before, batch, step, STEPS)


@pytest.fixture(scope="module")
def bench(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Two views of each photo, soft labels, the teacher's embeddings and the student's features."""
    path = tmp_path_factory.mktemp("step") / "rich.zarr"
    worlds.teach_inline(
        world,
        path,
        teacher,
        students=(student,),
        top_k=4,
        embeddings="float16",
        views=ViewPolicy(views=2, seed=5),
        chunk_rows=20,
    )
    clip, store = worlds.loaded_once(student), LabelStore.open(path)
    rows = open_working_set(store, clip.digest, Silent(), embeddings=True)
    clip = replace(clip, model=copy.deepcopy(clip.model))
    with torch.no_grad():
        clip.model.logit_scale.fill_(math.log(5.0))  # the teacher's is 8: neither may stand for the other
    with ViewImages(store, world.root, clip, threads=1) as images:
        yield Bench(clip, rows, images)
    rows.close()


def named(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of the trained parameters."""
    return {name: parameter.detach().clone() for name, parameter in trainer.learners.named_parameters()}


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """What the last step left in the parameters' `grad`."""
    collected = {}
    for name, parameter in trainer.learners.named_parameters():
        assert parameter.grad is not None, name
        collected[name] = parameter.grad.detach().clone()
    return collected


def require_same(actual: dict[str, Tensor], expected: dict[str, Tensor], share: float = PRECISE) -> None:
    """Every tensor within a share of its own length, and none of them zero."""
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert actual[name].dtype == torch.float32
        assert wanted.norm() > 0, name
        off = float((actual[name].double() - wanted).norm() / wanted.norm())
        assert off < share, f"{name} is off by {off:.1e} of its length"


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_a_step_is_that_of_the_whole_loss(case: str, bench: Bench) -> None:
    """Of every parameter, at prompts some way off their start; and the reported losses are the reference's."""
    options = dict(CASES[case])
    trainer, reported, lines = bench.both(options.pop("step", STEP), **options)
    require_same(gradients(trainer), lines.gradient)
    assert reported["loss"] == pytest.approx(lines.loss, rel=1e-4)
    for name, part in lines.parts.items():
        assert reported[name] == pytest.approx(part, rel=1e-4), name
    assert reported["gradient_norm"] == pytest.approx(norm_of(lines.gradient), rel=PRECISE)
    assert reported["candidates"] == int((lines.drawn.stands_for > 0).sum())


@pytest.mark.parametrize("labelled", [3, 100])
@pytest.mark.parametrize("case", ["lambda", "to-label", "micro-batches", "sampled ln", "sampled log10"])
def test_rows_without_a_label_count_in_the_soft_mean_only(
    case: str, labelled: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hard loss is the mean over the step's labelled rows, every third or the first alone, also in blocks."""
    real: Callable[[Any], Batch] = bench.rows.batch

    def some(places: Any) -> Batch:
        batch = real(places)
        return replace(batch, label=np.where(np.arange(len(batch.label)) % labelled == 0, batch.label, -1))

    monkeypatch.setattr(bench.rows, "batch", some)
    trainer, reported, lines = bench.both(**CASES[case])
    require_same(gradients(trainer), lines.gradient)
    assert reported["hard"] == pytest.approx(lines.parts["hard"], rel=1e-4)


def test_a_step_without_any_label_follows_the_teacher_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hard loss is 0 then, and its gradient too."""
    real: Callable[[Any], Batch] = bench.rows.batch
    monkeypatch.setattr(bench.rows, "batch", lambda places: replace(b := real(places), label=np.full_like(b.label, -1)))
    trainer, reported, lines = bench.both(anchor_weight=0.0)
    require_same(gradients(trainer), lines.gradient)
    assert reported["hard"] == 0.0 and reported["loss"] == reported["soft"] > 0


@pytest.mark.parametrize("correction", ["ln", "log10", "none"])
def test_candidates_are_drawn_anew_by_the_seed_and_the_step(correction: Any, bench: Bench) -> None:
    """In the cases above another seed, or another step, would have drawn other classes: the comparison can tell."""
    plain = bench.plain(**DRAWN, correction=correction)
    batch = bench.rows.batch(bench.trainer(**DRAWN).order.at(STEP)[1])

    def classes(seed: int, step: int) -> list[int]:
        candidates = sampled_candidates(
            batch.label, batch.class_ids[:, :1], 2, len(plain.names), seed, step, correction, plain.name_of.numpy()
        )
        return candidates.classes.tolist()

    drawn = classes(BASE["seed"], STEP)  # type: ignore[arg-type]
    assert len(drawn) < len(plain.names)
    assert classes(0, STEP) != drawn != classes(BASE["seed"], 0)  # type: ignore[arg-type]


def test_names_with_gradient_are_drawn_anew_by_the_seed_and_the_step() -> None:
    """As above, of all-sampled: seven names with gradients of like size."""
    norms = np.linspace(1.0, 2.0, 7)
    drawn = PoissonSample(3, 3, STEP).draw(norms)[0].tolist()
    assert 0 < len(drawn) < 7
    assert PoissonSample(3, 0, STEP).draw(norms)[0].tolist() != drawn != PoissonSample(3, 3, 0).draw(norms)[0].tolist()


PROGRAD = {"prograd": True, "supervision": "hard+soft", "soft_weight": 0.4, "anchor_weight": 3.0}


@pytest.mark.parametrize(("moved", "opposes"), [(8, True), (0, False)])
@pytest.mark.parametrize("more", [{}, {"micro_batch": 5, "consistency_weight": 0.7}, {"tower": "both"}])
def test_prograd_drops_what_opposes_the_frozen_student_and_nothing_else(
    moved: int, opposes: bool, more: dict[str, Any], bench: Bench
) -> None:
    """Of the hard loss's gradient only, over all parameters as one vector; without opposition it is whole."""
    options = PROGRAD | more
    trainer, _, lines = bench.both(moved=moved, **options)
    assert lines.against < -0.2 if opposes else lines.against > 0.2
    require_same(gradients(trainer), lines.gradient)
    whole = bench.both(moved=moved, **(options | {"prograd": False}))[2]
    changed = norm_of({name: part - lines.gradient[name] for name, part in whole.gradient.items()})
    assert changed > 100 * PRECISE * norm_of(lines.gradient) if opposes else changed < 1e-9


@pytest.mark.parametrize("more", [{}, {"tower": "both"}, {"prograd": True}])
def test_a_long_gradient_is_cut_to_the_limit_without_turning(more: dict[str, Any], bench: Bench) -> None:
    """All parameters together; what is reported is the length before that. A short one stays as it is."""
    free, reported, _ = bench.both(**more)
    whole = gradients(free)
    cut, again, _ = bench.both(clip_gradient=0.25 * norm_of(whole), **more)
    assert again["gradient_norm"] == reported["gradient_norm"] == pytest.approx(norm_of(whole), rel=1e-5)
    assert norm_of(gradients(cut)) == pytest.approx(0.25 * norm_of(whole), rel=1e-4)
    require_same(gradients(cut), {name: 0.25 * part for name, part in whole.items()})
    loose, _, _ = bench.both(clip_gradient=1.01 * norm_of(whole), **more)
    require_same(gradients(loose), whole, 1e-6)


UPDATES = {
    "sgd": {"optimizer": "sgd", "momentum": 0.7, "weight_decay": 0.3},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.3},
    "adamw without decay": {"optimizer": "adamw", "weight_decay": 0.0},
    "adamw with a cut": {"optimizer": "adamw", "weight_decay": 0.3, "clip_gradient": 0.05},
    "adamw in both towers": {"optimizer": "adamw", "weight_decay": 0.3, "tower": "both"},
    "adamw, replaced": {"optimizer": "adamw", "weight_decay": 0.0, "structure": "unshared-replace"},
}
RATES = {  # of BASE's first four steps: two of warm-up, two of a cosine over six
    "cosine": [0.05, 0.1, 0.1, 0.1 * math.cos(math.pi / 12) ** 2],
    "constant": [0.05, 0.1, 0.1, 0.1],
}


def test_replaced_prompts_take_no_weight_decay(bench: Bench) -> None:
    """The norm behind them drops their scale, so that a decay would only change the learning rate."""
    with pytest.raises(ValueError, match="weight_decay"):
        bench.trainer(structure="unshared-replace", weight_decay=0.3)


@pytest.mark.parametrize("schedule", RATES)
@pytest.mark.parametrize("case", UPDATES)
def test_four_steps_move_the_parameters_by_the_optimisers_formula(case: str, schedule: Any, bench: Bench) -> None:
    """In float64 from the steps' own gradients, at the schedule's rates."""
    options = UPDATES[case]
    trainer = bench.trainer(**options, schedule=schedule)
    before, seen = named(trainer), []
    for step, rate in enumerate(RATES[schedule]):
        assert trainer.step(step)["learning_rate"] == pytest.approx(rate)
        seen.append(gradients(trainer))
    decay = options["weight_decay"]
    for name, start in before.items():
        values, parts = start.double().numpy(), [part[name].double().numpy() for part in seen]
        if options["optimizer"] == "sgd":
            expected = sgd(values, parts, RATES[schedule], options["momentum"], decay)
        else:
            expected = adamw(values, parts, RATES[schedule], decay)
        off = np.linalg.norm(named(trainer)[name].double().numpy() - expected)
        assert off < 1e-4 * np.linalg.norm(expected - values), name


@pytest.mark.parametrize("case", UPDATES)
def test_the_fused_optimiser_of_a_gpu_makes_the_same_steps(case: str, bench: Bench) -> None:
    """From equal gradients, up to rounding. It runs here on the CPU, where no run uses it."""
    trainer, twin = bench.trainer(**UPDATES[case]), bench.trainer(**UPDATES[case])
    twin.optimizer = twin.learned.optimizer = optimizer_of(twin.config, twin.student, fused=True)
    assert [run.optimizer.defaults["fused"] for run in (trainer, twin)] == [None, True]
    for step in range(4):
        rate = trainer.step(step)["learning_rate"]
        twin.learned.update(step, list(gradients(trainer).values()), [rate])
    for name, plain in named(trainer).items():
        assert (named(twin)[name] - plain).norm() < 1e-6 * plain.norm(), name


AVERAGES: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "none": ({"averaging": "none"}, lambda done: float(done == 6)),
    "ema": ({"averaging": "ema", "average_decay": 0.8}, lambda done: 0.8 ** (6 - done)),
    "gaussian": (
        {"averaging": "gaussian", "average_mean": 0.5, "average_deviation": 0.2},
        lambda done: math.exp(-((done / STEPS - 0.5) ** 2) / (2 * 0.2**2)),
    ),
}


@pytest.mark.parametrize("tower", ["text", "both"])
@pytest.mark.parametrize("case", AVERAGES)
def test_the_result_is_the_weighted_mean_of_the_steps_parameters(case: str, tower: Any, bench: Bench) -> None:
    """After six steps of eight; the run goes on from its own parameters, also when the result was of no use."""
    options, weight = AVERAGES[case]
    trainer = bench.trainer(**options, tower=tower)
    seen = []
    for step in range(6):
        trainer.step(step)
        seen.append(named(trainer))
    weights = np.array([weight(done) for done in range(1, 7)])
    weights /= weights.sum()
    with trainer.result() as student:
        assert student is trainer.student
        result = named(trainer)
        shown = student.class_features()
    for name, tensor in result.items():
        expected = sum(share * part[name].double() for share, part in zip(weights, seen, strict=True))
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ZeroDivisionError), trainer.result():
        _ = 1 / 0
    assert all(torch.equal(part, seen[-1][name]) for name, part in named(trainer).items())
    assert torch.equal(student.class_features(), shown) == (case == "none")


def test_dimensions_are_masked_in_a_step_alone_and_by_the_step(bench: Bench) -> None:
    """What is measured and saved has all of them; another step masks others; the same step the same."""
    trainer = bench.trainer(1, mask_dimensions=0.5)
    learner = trainer.student.learner("text")
    assert learner is not None
    whole = learner().key
    kept = []
    for step in (3, 4, 3):
        with trainer.student.masked(step):
            kept.append(learner.kept["key"])
            assert whole is not None and not torch.equal(learner().key, whole)
        assert not learner.kept and torch.equal(learner().key, whole)
    assert torch.equal(kept[0], kept[2]) and not torch.equal(kept[0], kept[1])
    assert set(kept[0].unique().tolist()) == {0.0, 2.0}
    assert 0.35 < float((kept[0] == 0).float().mean()) < 0.65
