"""Imported prompts of MaPLe and PromptSRC give the features of their own forward pass, in both towers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dassl_files
import open_clip
import published_forward
import pytest
import torch
import worlds
from torch import Tensor

from teachonce import load_prompts
from teachonce.core.progress import Silent
from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.models.clip import load_clip
from teachonce.stages.import_ import ImportRequest, ImportResult, import_

LAYERS = 4
NAMES = ("red fox", "blue jay", "green snake", "crane")
Checkpoint = dict[str, Any]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP of four blocks a tower, so that prompts end before, in and behind the middle."""
    return worlds.make_clip(tmp_path_factory.mktemp("four-blocks"), 11, 12, LAYERS)


@pytest.fixture(scope="module")
def model(student: str) -> Any:
    return load_clip(student).model


def tokens() -> Tensor:
    """Of the classes of a run elsewhere."""
    words: Tensor = open_clip.SimpleTokenizer()([f"X X X X {name}." for name in ("oak", "tea cup")], 32)
    return words


def imported(checkpoint: Checkpoint, student: str, folder: Path, **options: Any) -> ImportResult:
    file = dassl_files.saved(folder, checkpoint)
    return import_(ImportRequest(checkpoint=file, student=student, out=folder / "out", **options), Silent())


def pixels() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def compare(folder: Path, model: Any, text: list[Tensor], image: list[Tensor]) -> None:
    """What was imported, against the papers' forward pass."""
    loaded = load_prompts(folder / "out")
    expected = published_forward.text_features(model, text, NAMES)
    assert torch.allclose(loaded.classifier(NAMES).double(), expected, atol=2e-6, rtol=0)
    expected_images = published_forward.image_features(model, image, pixels())
    assert torch.allclose(loaded.image_features(pixels()).double(), expected_images, atol=2e-6, rtol=0)
    bare = published_forward.image_features(model, [], pixels())
    if image:
        assert (expected_images - bare).norm(dim=-1).min() > 0.05, "image prompts matter"


@pytest.mark.parametrize("depth", [1, 2, 3, LAYERS])
@torch.no_grad()
def test_maple_gives_the_features_of_its_paper(depth: int, model: Any, student: str, tmp_path: Path) -> None:
    """At the input only, in some blocks, and in all: image prompts are linear maps of the text prompts."""
    checkpoint = dassl_files.maple_checkpoint(model, tokens(), depth)
    state = checkpoint["state_dict"]
    result = imported(checkpoint, student, tmp_path)
    assert (result.method, result.slots, result.depth, result.student_proved) == ("MaPLe", 4, depth, True)
    assert (result.image_slots, result.image_depth) == (4, depth)
    deeper = [state[f"prompt_learner.compound_prompts_text.{i}"] for i in range(depth - 1)]
    text = [state["prompt_learner.ctx"], *deeper]
    maps = ["proj", *(f"compound_prompt_projections.{i}" for i in range(depth - 1))]
    image = [
        prompt.double() @ state[f"prompt_learner.{name}.weight"].double().T
        + state[f"prompt_learner.{name}.bias"].double()
        for name, prompt in zip(maps, text, strict=True)
    ]
    compare(tmp_path, model, text, image)


@pytest.mark.parametrize(("depth", "image_depth"), [(1, 3), (3, 2), (LAYERS, LAYERS), (2, 0)])
@torch.no_grad()
def test_promptsrc_gives_the_features_of_its_paper(
    depth: int, image_depth: int, model: Any, student: str, tmp_path: Path
) -> None:
    """Independent prompts, of another number of slots and blocks in each tower, or in the text tower alone."""
    checkpoint = dassl_files.promptsrc_checkpoint(model, tokens(), depth, image_depth)
    state = checkpoint["state_dict"]
    result = imported(checkpoint, student, tmp_path)
    assert (result.method, result.depth, result.image_depth) == ("PromptSRC", depth, image_depth)
    assert result.image_slots == (3 if image_depth else 0)
    block = "{}.transformer.resblocks.{}.VPT_shallow"
    text = [state["prompt_learner.ctx"], *(state[block.format("text_encoder", i)] for i in range(1, depth))]
    first = [state["image_encoder.VPT"]] if image_depth else []
    compare(tmp_path, model, text, [*first, *(state[block.format("image_encoder", i)] for i in range(1, image_depth))])


def test_half_precision_and_the_sum_over_epochs_prove_the_same_student(
    model: Any, student: str, tmp_path: Path
) -> None:
    """Both keep their models in float16, and PromptSRC's average adds rounding to frozen weights too."""
    weights = [0.01, 0.04, 0.2, 0.5, 0.2, 0.05]
    half = dassl_files.in_half(dassl_files.promptsrc_checkpoint(model, tokens(), 3, 3))
    for name, checkpoint in {
        "maple": dassl_files.in_half(dassl_files.maple_checkpoint(model, tokens(), 3)),
        "promptsrc": dassl_files.summed_over_epochs(half, weights),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        assert imported(checkpoint, student, folder).student_proved


def test_kgcoop_is_read_without_what_its_code_never_reads(model: Any, student: str, tmp_path: Path) -> None:
    checkpoint = dassl_files.kgcoop_checkpoint(model, tokens())
    result = imported(checkpoint, student, tmp_path)
    assert (result.method, result.slots, result.depth, result.image_slots) == ("KgCoOp", 4, 1, 0)
    expected = published_forward.text_features(model, [checkpoint["state_dict"]["ctx"]], NAMES)
    assert torch.allclose(load_prompts(tmp_path / "out").classifier(NAMES).double(), expected, atol=2e-6, rtol=0)


def without(name: str) -> Callable[[Checkpoint], Any]:
    return lambda checkpoint: checkpoint["state_dict"].pop(name)


def given(name: str, value: Tensor) -> Callable[[Checkpoint], Any]:
    return lambda checkpoint: checkpoint["state_dict"].update({name: value})


MAPLE = "prompt_learner."
REFUSED: dict[str, Callable[[Checkpoint], Any]] = {
    r"linear maps .* not whole: prompt_learner\.proj\.bias missing": without(MAPLE + "proj.bias"),
    r"expected 'prompt_learner\.compound_prompts_text\.N' for N = 0, 1, ... without a gap, found N = 1": without(
        MAPLE + "compound_prompts_text.0"
    ),
    r"'prompt_learner\.compound_prompts_text\.0' of shape \[4, 32\], found \[3, 32\]": given(
        MAPLE + "compound_prompts_text.0", torch.zeros(3, 32)
    ),
    "1 of 128 numbers of 'prompt_learner.ctx' are not finite": given(
        MAPLE + "ctx", torch.cat([torch.full((1,), torch.nan), torch.zeros(127)]).view(4, 32)
    ),
    "the prompts of MaPLe, .* 'prompt_learner.meta_net.linear1.weight'": given(
        MAPLE + "meta_net.linear1.weight", torch.zeros(2)
    ),
    "'image_encoder.VPT'": given("image_encoder.VPT", torch.zeros(4, 32)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_whole_or_more_than_the_prompts_is_refused_by_name(
    message: str, model: Any, student: str, tmp_path: Path
) -> None:
    checkpoint = dassl_files.maple_checkpoint(model, tokens(), 3)
    REFUSED[message](checkpoint)
    with pytest.raises(DataError, match=message):
        imported(checkpoint, student, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_student_of_promptkd_is_refused_by_name(model: Any, student: str, tmp_path: Path) -> None:
    """It has no text side: its image features are projected to where its teacher's class vectors are."""
    state = {f"image_encoder.{n}": x.detach() for n, x in model.visual.named_parameters()}
    state |= {"image_encoder.VPT": torch.zeros(4, 32), "VPT_image_trans.conv1.0.weight": torch.zeros(16, 12, 1, 1)}
    with pytest.raises(DataError, match="student of PromptKD: it classifies in its teacher's space, through VPT_image"):
        imported({"state_dict": state}, student, tmp_path)


def test_another_student_is_refused_by_its_first_weight_that_differs(model: Any, student: str, tmp_path: Path) -> None:
    """Its start token, a weight deep in it, or one that the student lacks."""
    state = dassl_files.maple_checkpoint(model, tokens(), 2)["state_dict"]
    deep = "image_encoder.transformer.resblocks.3.mlp.c_proj.weight"
    changes = {
        "start token's embedding differs": {f"{MAPLE}token_prefix": state[f"{MAPLE}token_prefix"] + 1},
        r"'visual\.transformer\.resblocks\.3\.mlp\.c_proj\.weight' differs by": {deep: 1.05 * state[deep]},
        "it holds 'visual.adapter', which this student does not have": {"image_encoder.adapter": torch.zeros(1)},
    }
    for number, (message, change) in enumerate(changes.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(FingerprintError, match=message):
            imported({"state_dict": {**state, **change}}, student, folder)


def test_another_place_for_the_slots_is_refused(model: Any, student: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is of MaPLe, whose slots stand before the name"):
        imported(dassl_files.maple_checkpoint(model, tokens(), 2), student, tmp_path, position="after")
