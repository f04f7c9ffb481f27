"""A key that is said to have no effect has none on a real run, and has one where the reason is gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import worlds
from worlds import World

from teachonce.core.documents import read_events
from teachonce.core.progress import Silent
from teachonce.core.strict import Idle
from teachonce.errors import UsageError
from teachonce.models.prompt_files import load_prompts
from teachonce.recipe.config import marks
from teachonce.recipe.config_file import load_train_config
from teachonce.stages.train import TrainRequest, train

BASE = ("steps=3", "batch_size=24", "checkpoint_every=100", "log_every=1", "warmup_steps=1")
SOFT = (
    "soft_schedule=rise",
    "soft_loss=js",
    "temperature=2",
    "teacher_temperature=2",
    "targets=embedding",
    "tail=to-label",
)

FEW = "candidates=sampled sampled_top=1 batch_size=2"  # so that there are others than labels to draw


class Case(NamedTuple):
    """Values that do nothing where the `on` hold, and something where the `off` do."""

    on: str
    off: str
    values: tuple[str, ...]


CASES = (
    Case("supervision=hard", "", ("soft_weight=0.5", "kl_mean=rows-and-classes", *SOFT)),
    Case("soft_weight=0", "", SOFT),
    Case("supervision=soft", "", ("hard_over=seen", "hard_loss=gce")),
    Case("", "hard_loss=gce", ("gce_q=0.5",)),
    Case("supervision=soft hard_loss=ce", "hard_loss=gce", ("gce_q=0.5",)),
    Case("tower=image", "", ("anchor_weight=1", "anchor_form=l1", "bare_templates=the-{}")),
    Case("anchor_weight=0", "", ("anchor_form=l1", "bare_templates=the-{}")),
    Case("targets=embedding", "", ("tail=to-label",)),
    Case("", f"{FEW} sampled_fill=2", ("correction=none", "sampled_fill=3", "sampled_top=3")),
    Case(f"{FEW} sampled_fill=0", f"{FEW} sampled_fill=2", ("correction=none",)),
    Case("", "candidates=teacher batch_size=2", ("teacher_names=3",)),
    Case("", "candidates=all-sampled class_chunk=2", ("sampled_backward=1",)),
    Case("", "tower=both", ("image_length=2", "image_depth=1")),
    Case("tower=both coupled=true init=words", "tower=both", ("image_length=2", "image_depth=1")),
    Case("tower=text", "tower=both init=words", ("coupled=true",)),
    Case("tower=image", "", ("length=6", "depth=1", "position=after", "class_chunk=3")),
    Case("structure=shared tower=both", "tower=both", ("depth=1", "image_depth=1")),
    Case("", "tower=image", ("init=words",)),
    Case("tower=none head=linear", "", ("mask_dimensions=0.5", "structure=shared", "layer_scale=false")),
    Case("tower=none head=linear", "", ("learning_rate=1", "weight_decay=0.1")),
    Case("tower=none head=linear", "tower=image", ("init=words",)),
    Case("", "head=linear", ("head_weight=0.5", "head_penalty=0.3", "head_rate=0.1", "head_learn=after")),
    Case("", "head=linear", ("head_handicap=1",)),
    Case("", "head=linear head_learn=after", ("head_steps=2",)),
    Case("tower=none head=linear", "head=linear", ("head_learn=after",)),
    Case("tower=none head=linear", "head=linear head_learn=after", ("head_steps=2",)),
    Case("head=tip-adapter head_learn=after", "head=linear head_learn=after", ("head_steps=2",)),
    Case("", "tower=none head=tip-adapter-f", ("tip_alpha=2", "tip_beta=2")),
    Case("", "tower=none head=clip-adapter", ("adapter_ratio=0.5", "adapter_width=2")),
    Case("structure=shared", "", ("mask_dimensions=0.5",)),
    Case("", "optimizer=sgd", ("momentum=0.5",)),
    Case("", "warmup=constant", ("warmup_rate=0.01",)),
    Case("warmup_steps=0", "warmup_steps=1", ("warmup=constant",)),
    Case("warmup=constant warmup_steps=0", "warmup=constant", ("warmup_rate=0.01",)),
    Case("warmup_epochs=1", "", ("warmup_steps=3",)),
    Case("warmup_steps=3", "warmup_steps=0", ("schedule=constant",)),
    Case("", "averaging=ema", ("average_decay=0.5",)),
    Case("", "averaging=gaussian", ("average_mean=0.2", "average_deviation=0.5")),
    Case("epochs=0.5", "", ("steps=2",)),
    Case("", "held_out=0.3", ("evaluate_every=1",)),
)
PAIRS = [(case, value) for case in CASES for value in case.values]
Fingerprint = tuple[object, ...]


@pytest.fixture(scope="module")
def outcome(
    world: World, teacher: str, student: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Fingerprint]]:
    """What a run with some overrides comes to, computed once: prompts, losses, measurements; or its refusal."""
    import teachonce.teaching.worker  # noqa: F401 - it must take the real load_clip before it is replaced

    folder = tmp_path_factory.mktemp("effects")
    worlds.teach_inline(
        world,
        folder / "rich.zarr",
        teacher,
        students=(student,),
        top_k=4,
        embeddings="float16",
        chunk_rows=worlds.PHOTOS,
    )
    known: dict[str, Fingerprint] = {}

    def run(overrides: str) -> Fingerprint:
        out = folder / f"run-{len(known)}"
        config = load_train_config(None, [*BASE, *overrides.split()])
        request = TrainRequest(
            labels=folder / "rich.zarr", student=student, out=out, config=config, threads=1, root=world.root
        )
        try:
            train(request, Silent())
        except UsageError as problem:
            return ("refused", str(problem))
        events = read_events(out / "events.jsonl")
        losses = [event["loss"] for event in events if event["event"] == "step"]
        measured = [event["step"] for event in events if event["event"] == "held_out"]
        head = load_prompts(out).meta.head
        return (out / "prompts.safetensors").read_bytes(), losses, measured, head and head.handicap

    def once(overrides: str) -> Fingerprint:
        key = overrides.strip()
        if key not in known:
            known[key] = run(key)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teachonce.stages.train.steps.load_clip", worlds.loaded_once)
        patch.setattr("os.fsync", lambda handle: None)
        yield once


def warned(overrides: str, value: str) -> bool:
    """Whether the config says that the key has no effect."""
    key = value.partition("=")[0]
    sentences = load_train_config(None, [*BASE, *overrides.split(), value]).without_effect()
    return any(sentence.split(" ")[0] == key for sentence in sentences)


def test_every_rule_is_tried_with_every_key() -> None:
    """A new rule needs a run that shows it."""
    rules = [(key, rule) for key, rules_of_key in marks().items() for rule in rules_of_key if isinstance(rule, Idle)]
    tried = {
        number
        for case, value in PAIRS
        for number, (key, rule) in enumerate(rules)
        if key == value.partition("=")[0] and rule.holds(values_of(case.on))
    }
    assert tried == set(range(len(rules)))


def values_of(overrides: str) -> dict[str, Any]:
    """All values of a config."""
    return load_train_config(None, [*BASE, *overrides.split()]).to_dict()


@pytest.mark.parametrize(("case", "value"), PAIRS)
def test_what_is_said_to_have_no_effect_changes_no_bit(
    case: Case, value: str, outcome: Callable[[str], Fingerprint]
) -> None:
    """Prompts, losses and the steps that are measured."""
    assert warned(case.on, value)
    plain = outcome(case.on)
    assert plain[0] != "refused"
    assert outcome(f"{case.on} {value}") == plain


@pytest.mark.parametrize(("case", "value"), [pair for pair in PAIRS if pair[1] != "class_chunk=3"])
def test_without_the_reason_it_has_an_effect(case: Case, value: str, outcome: Callable[[str], Fingerprint]) -> None:
    """Something differs, or it is refused. `class_chunk` bounds memory and changes no more than rounding."""
    assert not warned(case.off, value)
    assert outcome(f"{case.off} {value}") != outcome(case.off)
