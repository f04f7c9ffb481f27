"""Runs with heads: what is kept of them says what they do, with their prompts, for names they know and for others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import head_reference
import numpy as np
import pytest
import torch
import worlds
from train_runs import killed_before, steps_of
from worlds import World

from teachonce.core.documents import read_events
from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import UsageError
from teachonce.labels.store import LabelStore
from teachonce.models.classifier import equal_rows, score
from teachonce.models.prompt_files import LoadedPrompts, load_prompts
from teachonce.recipe.config_file import load_train_config
from teachonce.rows.order import TrainingOrder
from teachonce.rows.working_set import open_working_set
from teachonce.stages.train import TrainRequest, train
from teachonce.stages.train.outcome import TrainResult

BASE = ("steps=6", "batch_size=24", "checkpoint_every=2", "log_every=1", "warmup_steps=1", "supervision=hard")
HEADS = ("linear", "bias", "tip-adapter", "tip-adapter-f", "clip-adapter", "projection")
VECTORS = ("linear", "projection")
OTHERS = ("a name of nobody", "GREEN SNAKE", *worlds.NAMES)
BEHIND = ("head=linear", "head_learn=after", "head_steps=5", "head_rate=0.1", "averaging=ema", "average_decay=0.6")


@pytest.fixture(scope="module", autouse=True)
def student_in_memory() -> Iterator[None]:
    """The tiny student is read from disk once a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teachonce.stages.train.steps.load_clip", worlds.loaded_once)
        yield


@pytest.fixture(scope="module")
def taught(world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of each photo, and the student's features."""
    path = tmp_path_factory.mktemp("heads") / "taught.zarr"
    policy = ViewPolicy(views=2, seed=5)
    worlds.teach_inline(world, path, teacher, students=(student,), top_k=4, views=policy, chunk_rows=20)
    return path


def run(labels: Path, student: str, out: Path, *overrides: str, **options: Any) -> TrainResult:
    """Train in this process, one thread."""
    config = load_train_config(None, [*BASE, *overrides])
    request = TrainRequest(labels=labels, student=student, out=out, config=config, threads=1, **options)
    return train(request, Silent())


def loaded(out: Path, student: str) -> LoadedPrompts:
    """The run's prompts and head, on the student."""
    return load_prompts(out).bound_to(worlds.loaded_once(student))


def images(labels: Path, student: str) -> Any:
    """Some image features, the labels and all else of the store's rows."""
    clip = worlds.loaded_once(student)
    rows = open_working_set(LabelStore.open(labels), clip.digest, Silent())
    try:
        return rows.batch(np.arange(len(rows)))
    finally:
        rows.close()


@pytest.mark.parametrize("head", HEADS)
def test_a_kept_head_gives_the_logits_of_its_formula(head: str, taught: Path, student: str, tmp_path: Path) -> None:
    """For names that it knows however they are spelled, and for others; from its file alone."""
    options = ("tower=none", f"head={head}", "head_rate=0.05", "tip_beta=1.5", "adapter_width=5")
    run(taught, student, tmp_path / "run", *options)
    prompts, rows = loaded(tmp_path / "run", student), images(taught, student)
    assert prompts.meta.head is not None and prompts.head is not None
    config = load_train_config(None, [*BASE, *options]).head
    samples = (rows.row // 2).tolist()
    known = head_reference.known(worlds.NAMES, rows.label.tolist(), samples, torch.from_numpy(rows.features))
    of_head = {name: x.double() for name, x in prompts.head.tensors().items()}
    if head.startswith("tip"):
        of_head = {"move": of_head["keys"] - known.cache}
        assert (of_head["move"].norm() > 1e-2) == (head == "tip-adapter-f")
    from teachonce.models.classifier import template_features

    clip = worlds.loaded_once(student)
    text = template_features(clip, OTHERS, worlds.TEMPLATE).double()
    some = torch.from_numpy(rows.features[:9]).double()
    wanted = head_reference.plain_logits(config, of_head, known, OTHERS, text, some, clip.logit_scale)
    assert torch.allclose(prompts.logits(some.float(), OTHERS).double(), wanted, atol=1e-4)
    if head in VECTORS:
        assert torch.allclose(clip.logit_scale * some @ prompts.classifier(OTHERS).double().T, wanted, atol=1e-4)
    else:
        with pytest.raises(UsageError, match=f"head '{head}'"):
            prompts.classifier(OTHERS)


def test_names_without_photos_keep_the_vectors_that_the_prompts_give_them(
    taught: Path, student: str, tmp_path: Path
) -> None:
    """With prompts and a linear head: to the last bit; and names that the tokenizer makes equal stay equal."""
    run(taught, student, tmp_path / "run", "head=linear", "head_rate=0.1")
    both = loaded(tmp_path / "run", student)
    assert both.meta.head is not None
    bare = both.__class__(both.text, None, both.meta, both.model, both.tensors_digest, both.student)
    with_head, without = both.classifier(OTHERS), bare.classifier(OTHERS)
    known = {name.lower() for name in both.meta.head.names}
    same = [bool(torch.equal(a, b)) for a, b in zip(with_head, without, strict=True)]
    assert same == [name.lower() not in known for name in OTHERS]
    assert torch.equal(with_head[OTHERS.index("crane")], with_head[OTHERS.index("Crane")])


@pytest.mark.parametrize("head", [pytest.param("linear", marks=pytest.mark.slow), "tip-adapter", "clip-adapter"])
def test_held_out_accuracy_is_that_of_what_is_kept(head: str, taught: Path, student: str, tmp_path: Path) -> None:
    """With prompts, the head behind them, on samples that no step has seen."""
    result = run(taught, student, tmp_path / "run", f"head={head}", "head_learn=after", "head_steps=3", "held_out=0.4")
    prompts, rows = loaded(tmp_path / "run", student), images(taught, student)
    order = TrainingOrder(rows.row.astype(np.int64), 2, 24, 1, 0, 0.4)
    places = order.held_out[rows.label[order.held_out] >= 0]
    classes = prompts.scoring_classes(worlds.NAMES)
    seen = prompts.scoring_images(torch.from_numpy(rows.features[places]).float())
    scores = score(seen, classes, torch.from_numpy(rows.label[places]), equal_rows(classes))
    assert result.held_out_top1 == pytest.approx(scores.top1.mean())
    if head == "tip-adapter":
        assert prompts.meta.head is not None
        trained = set(rows.row.tolist()) - set(rows.row[order.held_out].tolist())
        assert prompts.meta.head.cached == len({row // 2 for row in trained})


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 6, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_run_with_a_head_behind_its_prompts_ends_as_if_it_had_not_been(
    stop: int, taught: Path, student: str, tmp_path: Path
) -> None:
    """While prompts move, where the head begins, and while the head moves; with averages of both."""
    run(taught, student, tmp_path / "whole", *BEHIND)
    with killed_before(stop):
        run(taught, student, tmp_path / "run", *BEHIND)
    run(taught, student, tmp_path / "run", *BEHIND, resume=True)
    whole, resumed = ((tmp_path / name / "prompts.safetensors").read_bytes() for name in ("whole", "run"))
    assert resumed == whole
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole")


def test_a_head_behind_the_prompts_leaves_them_as_they_are_without_it(
    taught: Path, student: str, tmp_path: Path
) -> None:
    """The averaged prompts are those of a run without a head, and the head learns on them: the loss goes on falling."""
    run(taught, student, tmp_path / "bare", *BEHIND[4:])
    run(taught, student, tmp_path / "both", *BEHIND)
    bare, both = load_prompts(tmp_path / "bare"), load_prompts(tmp_path / "both")
    assert bare.text is not None and both.text is not None
    for name, x in bare.text.tensors().items():
        assert torch.equal(both.text.tensors()[name], x), name
    losses = [event["loss"] for event in read_events(tmp_path / "both" / "events.jsonl") if event["event"] == "step"]
    assert len(losses) == 11 and losses[-1] < losses[6]


def test_prompts_without_a_head_are_described_as_before_there_were_heads(
    taught: Path, student: str, tmp_path: Path
) -> None:
    """So a version that knows none reads them, and equal runs leave equal files."""
    run(taught, student, tmp_path / "run")
    assert '"head"' not in (tmp_path / "run" / "prompts.json").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("tower=none",), "nothing would be learned"),
        (("head=tip-adapter",), "head_learn = 'after'"),
        (("head=tip-adapter-f",), "head_learn = 'after'"),
        (("tower=none", "head=linear", "candidates=all-sampled"), "there are none"),
        (("tower=none", "head=linear", "compile=true"), "runs none"),
    ],
)
def test_what_cannot_be_learned_is_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_train_config(None, [*BASE, *overrides])
