"""Every value of every training option takes real steps, on a store that has all a run can ask for.

What the parts compute is tested against brute force in tests/unit; here they are put together as a user would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from option_values import NUMBERS, literal_values
from safetensors import safe_open
from train_runs import killed_before
from worlds import World

from teachonce.core.documents import read_events
from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import DataError, FingerprintError, TeachOnceError, UsageError
from teachonce.labels.store import LabelStore
from teachonce.models.prompt_files import load_prompts
from teachonce.recipe.config_file import load_train_config
from teachonce.stages.train import TrainRequest, train
from teachonce.stages.train.outcome import TrainResult

STEPS = 4
BASE = (
    f"steps={STEPS}",
    "batch_size=24",
    "checkpoint_every=100",
    "log_every=1",
    "warmup_steps=2",
    "image_length=2",
    "sampled_fill=2",
    "sampled_top=1",
    "sampled_backward=3",
    "evaluate_every=2",
)


@pytest.fixture(scope="module", autouse=True)
def student_in_memory() -> Iterator[None]:
    """The tiny student is read from disk once a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teachonce.stages.train.steps.load_clip", worlds.loaded_once)
        yield


@pytest.fixture(scope="module")
def rich(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of each photo, soft labels, the teacher's embeddings and the student's features."""
    path = tmp_path_factory.mktemp("rich") / "rich.zarr"
    policy = ViewPolicy(views=2, seed=5)
    worlds.teach_inline(
        world, path, teacher, students=(student,), top_k=4, embeddings="float16", views=policy, chunk_rows=20
    )
    return path


def run(labels: Path, student: str, out: Path, *overrides: str, **options: Any) -> TrainResult:
    """Train in this process, one thread."""
    config = load_train_config(None, [*BASE, *overrides])
    request = TrainRequest(labels=labels, student=student, out=out, config=config, threads=1, **options)
    return train(request, Silent())


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each row, in the precision given."""
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def losses_of(out: Path) -> list[float]:
    """The logged losses."""
    return [event["loss"] for event in read_events(out / "events.jsonl") if event["event"] == "step"]


def parameters_of(out: Path) -> dict[str, torch.Tensor]:
    """What the newest checkpoint holds of the trained parameters."""
    with safe_open(sorted((out / "checkpoints").iterdir())[-1], framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith("parameter.")]  # noqa: SIM118
        return {name: opened.get_tensor(name) for name in names}


@pytest.mark.parametrize("choice", [*literal_values(), *NUMBERS])
def test_every_option_value_does_real_work(choice: str, rich: Path, student: str, world: World, tmp_path: Path) -> None:
    """The loss is finite, and every block of every trained tensor moves away from its start, which is zero."""
    overrides = choice.split(" ") if not choice.startswith("context") else [choice]
    result = run(rich, student, tmp_path / "run", *overrides, root=world.root)
    assert np.isfinite(result.final_loss)
    parameters = parameters_of(tmp_path / "run")
    assert sum(tensor.numel() for tensor in parameters.values()) == result.trainable_parameters
    for name, tensor in parameters.items():
        stacked = tensor if tensor.ndim == 3 else tensor[None]
        assert all((block != 0).any() for block in stacked), name


def test_soft_loss_from_embeddings_is_the_whole_kl(rich: Path, student: str, tmp_path: Path) -> None:
    """The first logged soft loss, of all rows, against KL in NumPy from what the store holds, at tau = 2."""
    run(
        rich,
        student,
        tmp_path / "run",
        "targets=embedding",
        "temperature=2",
        "batch_size=70",
        "views_per_step=2",
        "steps=1",
    )
    soft = next(e["soft"] for e in read_events(tmp_path / "run" / "events.jsonl") if e["event"] == "step")
    store = LabelStore.open(rich)
    (group,) = [name for name in store.groups if name.startswith("students/")]
    clip = worlds.loaded_once(student)
    from teachonce.models.classifier import template_features

    text = template_features(clip, worlds.NAMES, worlds.TEMPLATE).double().numpy()
    kept = [(store.embeddings(c), store.read_chunk(group, c)[f"{group}/features"]) for c in range(store.layout.chunks)]
    teacher, ours = (np.concatenate(column).astype(np.float64) for column in zip(*kept, strict=True))
    scale = float(store.groups["labels"].fingerprint["logit_scale"])
    log_t = log_softmax(scale * teacher @ store.class_embeddings().T.astype(np.float64) / 2)
    log_s = log_softmax(clip.logit_scale * ours @ text.T / 2)
    expected = 4 * (np.exp(log_t) * (log_t - log_s)).sum(1).mean()
    assert soft == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("more", ["", "tower=both", "prograd=true", "candidates=sampled correction=log10"])
def test_micro_batches_change_only_the_order_of_summation(
    more: str, rich: Path, student: str, world: World, tmp_path: Path
) -> None:
    """Rows in blocks of five give the losses of all rows at once, step after step."""
    whole, blocks = tmp_path / "whole", tmp_path / "blocks"
    run(rich, student, whole, *more.split(), root=world.root)
    run(rich, student, blocks, *more.split(), "micro_batch=5", root=world.root)
    assert losses_of(blocks) == pytest.approx(losses_of(whole), rel=2e-3)
    assert losses_of(blocks)[:2] == pytest.approx(losses_of(whole)[:2], rel=1e-4)


def test_image_prompts_begin_as_the_frozen_student(rich: Path, student: str, world: World, tmp_path: Path) -> None:
    """With closed gates the first loss, from pixels, is that of the stored features, up to their float16."""
    run(rich, student, tmp_path / "image", "tower=image", "supervision=hard", root=world.root)
    run(rich, student, tmp_path / "text", "supervision=hard")
    assert losses_of(tmp_path / "image")[0] == pytest.approx(losses_of(tmp_path / "text")[0], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_as_float32_does(
    precision: str, rich: Path, student: str, world: World, tmp_path: Path
) -> None:
    """Four steps of both towers end near the float32 losses."""
    run(rich, student, tmp_path / "half", f"precision={precision}", "tower=both", root=world.root)
    run(rich, student, tmp_path / "whole", "tower=both", root=world.root)
    assert losses_of(tmp_path / "half") == pytest.approx(losses_of(tmp_path / "whole"), rel=0.05)


def test_held_out_accuracy_is_that_of_the_saved_prompts(rich: Path, student: str, tmp_path: Path) -> None:
    """The last figure is top-1 by NumPy over rows that no step has seen, with the averaged prompts of the result."""
    from teachonce.rows.working_set import open_working_set

    out = tmp_path / "run"
    result = run(rich, student, out, "held_out=0.4", "averaging=ema", "average_decay=0.5")
    from teachonce.rows.order import TrainingOrder

    clip = worlds.loaded_once(student)
    rows = open_working_set(LabelStore.open(rich), clip.digest, Silent())
    order = TrainingOrder(rows.row_column, 2, 24, 1, 0, 0.4)
    batch = rows.batch(order.held_out)
    assert batch.features is not None
    classes = load_prompts(out).classifier(worlds.NAMES).numpy()
    best = (batch.features.astype(np.float32) @ classes.T).argmax(1)
    right = []
    for row, label in zip(best, batch.label, strict=True):
        same = [n for n in worlds.NAMES if n.lower() == worlds.NAMES[label].lower()]  # Crane and crane share the credit
        right.append((worlds.NAMES[row].lower() == worlds.NAMES[label].lower()) / len(same))
    assert result.held_out_top1 == pytest.approx(np.mean(right))
    events = [e for e in read_events(out / "events.jsonl") if e["event"] == "held_out"]
    assert [e["step"] for e in events] == [2, 4] and events[0]["rows"] == len(order.held_out)
    rows.close()


def test_a_run_may_start_from_the_prompts_of_another(rich: Path, student: str, tmp_path: Path) -> None:
    """Its first loss is that of the given prompts, whatever structure continues; the start is part of its identity."""
    first = tmp_path / "first"
    run(rich, student, first, "structure=shared", "supervision=hard", "views_per_step=2", "batch_size=70")
    again = ["supervision=hard", "views_per_step=2", "batch_size=70", "steps=1"]
    run(rich, student, tmp_path / "shared", "structure=shared", *again, init=first)
    run(rich, student, tmp_path / "unshared", *again, init=first)
    run(rich, student, tmp_path / "replace", "structure=unshared-replace", *again, init=first)
    expected = losses_of(tmp_path / "shared")[0]
    assert expected < losses_of(first)[0]
    assert losses_of(tmp_path / "unshared")[0] == pytest.approx(expected, rel=1e-4)
    assert losses_of(tmp_path / "replace")[0] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UsageError, match="unshared-replace cannot start as them"):
        run(rich, student, tmp_path / "no", "structure=unshared-replace", "position=after", "init=words", init=first)
    with pytest.raises(FingerprintError, match="another start"):
        run(rich, student, tmp_path / "shared", "structure=shared", *again, resume=True)


REFUSED = [
    ("a", ["tower=image"], {}, UsageError, "`root` is missing"),
    ("b", ["views_per_step=3"], {}, UsageError, "holds 2 of each sample"),
    ("c", ["temperature=3"], {}, UsageError, "teacher temperature = 3.0"),
    ("d", ["length=2"], {}, UsageError, "cannot start as"),
    ("e", ["depth=3"], {}, UsageError, "2 blocks"),
    ("f", ["length=29", "init=normal"], {}, UsageError, "class name|room"),
    ("g", ["held_out=0.0001"], {}, DataError, "held"),
    ("h", [], {"init": Path("nowhere")}, UsageError, "not a folder with prompts"),
    ("j", ["candidates=sampled", "sampled_top=5"], {}, UsageError, "sampled_top = 5: soft labels of .* have 4 classes"),
    ("l", ["steps=1", "soft_schedule=rise"], {}, UsageError, "more than the one step"),
    ("k", ["warmup=constant", "warmup_steps=9", "epochs=1"], {}, UsageError, "warmup_steps = 9: all 3 steps"),
    ("i", ["position=after", "structure=unshared-replace"], {}, UsageError, "cannot start as them"),
]


@pytest.mark.parametrize(("name", "overrides", "options", "kind", "words"), REFUSED)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(
    name: str,
    overrides: list[str],
    options: dict[str, Any],
    kind: type[TeachOnceError],
    words: str,
    rich: Path,
    student: str,
    tmp_path: Path,
) -> None:
    """Each with what is wrong and what to do."""
    with pytest.raises(kind, match=words) as caught:
        run(rich, student, tmp_path / name, *overrides, **options)
    assert caught.value.hint
    assert not (tmp_path / name).exists()


def test_embeddings_that_a_store_lacks_are_asked_for(finished: Path, student: str, tmp_path: Path) -> None:
    """The hint is the teach option that stores them."""
    with pytest.raises(DataError, match="holds no image embeddings") as caught:
        run(finished, student, tmp_path / "run", "targets=embedding")
    assert "`embeddings`" in caught.value.hint
    assert not (tmp_path / "run").exists()


ALL_ON = (
    "mask_dimensions=0.3",
    "tower=both",
    "averaging=gaussian",
    "micro_batch=7",
    "views_per_step=2",
    "held_out=0.3",
    "prograd=true",
    "consistency_weight=1",
    "anchor_weight=1",
    "targets=embedding",
    "candidates=sampled",
    "soft_schedule=rise",
    "label_smoothing=0.1",
    "clip_gradient=1",
    "steps=8",
    "checkpoint_every=3",
    "batch_size=20",
)


@pytest.fixture(scope="module")
def whole(rich: Path, student: str, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with everything on: three steps an epoch."""
    out = tmp_path_factory.mktemp("all-on") / "whole"
    run(rich, student, out, *ALL_ON, root=world.root)
    return out


@pytest.mark.parametrize("stop", [3, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 6))])
def test_a_killed_run_with_everything_on_resumes_bit_for_bit(
    stop: int, whole: Path, rich: Path, student: str, world: World, tmp_path: Path
) -> None:
    """Averages, held-out samples, views and image prompts included; twice interrupted."""
    out = tmp_path / "run"
    for number, at in enumerate((stop, 7)):
        with killed_before(at):
            run(rich, student, out, *ALL_ON, root=world.root, resume=number > 0)
    run(rich, student, out, *ALL_ON, root=world.root, resume=True)
    assert (out / "prompts.safetensors").read_bytes() == (whole / "prompts.safetensors").read_bytes()
    assert losses_of(out) == losses_of(whole)


def test_results_say_what_was_trained(rich: Path, student: str, world: World, tmp_path: Path) -> None:
    """Steps from epochs, held-out accuracy and the start are in results.json."""
    result = run(rich, student, tmp_path / "run", "epochs=1.5", "held_out=0.3")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == result.steps == losses_of(tmp_path / "run").__len__()
    assert results["held_out_top1"] == result.held_out_top1 is not None
    assert results["start"] == "of the config"


@pytest.mark.slow
def test_a_compiled_image_tower_trains_as_the_plain_one(rich: Path, student: str, world: World, tmp_path: Path) -> None:
    """The same losses up to rounding, also with a short last batch."""
    run(rich, student, tmp_path / "plain", "tower=both", root=world.root)
    run(rich, student, tmp_path / "compiled", "tower=both", "compile=true", root=world.root)
    assert losses_of(tmp_path / "compiled") == pytest.approx(losses_of(tmp_path / "plain"), rel=1e-3)


OURS = ("rpp", "rpp-reported", "rpp-vitb16")
OTHERS = ("coop", "kdpl", "kgcoop", "maple", "pomp", "pomp-vitb16", "prograd", "promptkd", "promptsrc", "tip-adapter-f")


@pytest.mark.parametrize("recipe", [*OURS, *OTHERS])
def test_every_shipped_recipe_trains(recipe: str, project: Path, rich: Path, student: str, tmp_path: Path) -> None:
    """As it stands but for the number of steps, and of views, of which this store has two."""
    file = project / "configs" / f"{recipe}.toml"
    deep = ["depth=1"] if recipe in ("maple", "promptsrc") else []  # nine blocks there, two here
    changed = ["epochs=0", "steps=3", "views_per_step=2", "warmup_steps=1", "warmup_epochs=0", *deep]
    config = load_train_config(file, changed)
    request = TrainRequest(labels=rich, student=student, out=tmp_path / "run", config=config, threads=1)
    assert np.isfinite(train(request, Silent()).final_loss)
    assert all((tensor != 0).any() for tensor in parameters_of(tmp_path / "run").values())


def test_the_reported_structure_learns_keys_and_values_of_every_block_and_has_no_query(
    rich: Path, student: str, tmp_path: Path
) -> None:
    """Each block of recipe rpp-reported replaces the slots again, so a query prompt would never get a gradient."""
    trained = []
    for steps in (1, 4):
        config = load_train_config(Path("rpp-reported"), [f"steps={steps}", "warmup_steps=1"])
        out = tmp_path / str(steps)
        train(TrainRequest(labels=rich, student=student, out=out, config=config, threads=1), Silent())
        prompts = load_prompts(out).text
        assert prompts is not None and prompts.replace
        trained.append(prompts.tensors())
    blocks = worlds.loaded_once(student).model.transformer.layers
    assert set(trained[0]) == {"key", "value"}
    for letter in ("key", "value"):
        assert len(trained[0][letter]) == blocks
        assert (trained[0][letter] != trained[1][letter]).flatten(1).any(1).all()  # every block has moved
