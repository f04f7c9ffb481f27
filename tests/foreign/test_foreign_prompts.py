"""Checkpoints of CoOp and POMP: real ones are read to the bit, forged and foreign ones are refused and never run."""

from __future__ import annotations

import io
import os
import random
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dassl_files
import numpy as np
import pytest
import torch
import tower_reference
from torch import nn

from teachonce.errors import DataError, FingerprintError, IntegrityError, TeachOnceError, UsageError
from teachonce.foreign.proof import prove_student
from teachonce.foreign.reading import read_foreign
from teachonce.towers.text_tower import TextTower

NAMES = ["tench", "great white shark"]
Checkpoint = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> Any:
    """A CLIP of 77 positions."""
    return tower_reference.tiny_clip("openai")


@pytest.fixture(scope="module")
def tower(model: Any) -> TextTower:
    """Its text tower."""
    return TextTower.from_clip(model, tower_reference.tokenizer())


@pytest.fixture
def checkpoint(model: Any) -> Checkpoint:
    """What a run has left, before it is written."""
    tokens = tower_reference.tokenizer()([f"X X X X {name}." for name in NAMES], 77)
    return dassl_files.dassl_checkpoint(model, tokens)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_checkpoint_of_dassl_is_read_to_the_bit(
    options: Checkpoint, checkpoint: Checkpoint, tower: TextTower, tmp_path: Path
) -> None:
    """With the objects that it holds beside the tensors, in the format of today and in that of CoOp's days."""
    file, before = dassl_files.saved(tmp_path, checkpoint, **options), set(torch.serialization.get_safe_globals())
    prompts = read_foreign(file)
    assert torch.equal(prompts.context, checkpoint["state_dict"]["ctx"]) and prompts.context.dtype == torch.float32
    assert prompts.epoch == 50 and prompts.positions == 77
    assert prove_student(prompts, tower, file)
    after = set(torch.serialization.get_safe_globals())  # torch keeps them in no order
    assert after == before, "what was allowed for this file is allowed no longer"


def test_the_objects_beside_are_not_made(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an optimiser nor a scheduler of torch comes to life while a file is read."""
    file = dassl_files.saved(tmp_path, checkpoint)

    def made(*given: object) -> None:
        raise AssertionError("an object of the file came to life")

    for kind in (torch.optim.SGD, torch.optim.lr_scheduler.CosineAnnealingLR):
        monkeypatch.setattr(kind, "__setstate__", made, raising=False)
        monkeypatch.setattr(kind, "__init__", made)
    read_foreign(file)


SOUND: dict[str, Callable[[Checkpoint], Any]] = {
    "float16": lambda c: c["state_dict"].update({n: x.half() for n, x in c["state_dict"].items()}),
    "bfloat16 context": lambda c: c["state_dict"].update(ctx=c["state_dict"]["ctx"].bfloat16()),
    "a parameter": lambda c: c["state_dict"].update(ctx=nn.Parameter(c["state_dict"]["ctx"])),
    "an ordered dict": lambda c: c.update(state_dict=OrderedDict(c["state_dict"])),
    "float32 result": lambda c: c.update(val_result=np.float32(0.5)),
    "no result": lambda c: c.update(val_result=None),
    "nothing else": lambda c: [c.pop(name) for name in ("epoch", "optimizer", "scheduler", "val_result")],
}


@pytest.mark.parametrize("how", SOUND)
def test_other_forms_of_the_same_are_taken(how: str, checkpoint: Checkpoint, tower: TextTower, tmp_path: Path) -> None:
    """Half precision is converted; what is not needed may be missing."""
    SOUND[how](checkpoint)
    file = dassl_files.saved(tmp_path, checkpoint)
    prompts = read_foreign(file)
    wanted = checkpoint["state_dict"]["ctx"].detach().float()
    assert torch.equal(prompts.context, wanted) and not prompts.context.requires_grad
    assert prove_student(prompts, tower, file)


def test_without_the_start_token_the_student_is_not_proved(
    checkpoint: Checkpoint, tower: TextTower, tmp_path: Path
) -> None:
    """It fits by its width, and the caller is told that this is all."""
    for name in ("token_prefix", "token_suffix"):
        checkpoint["state_dict"].pop(name)
    file = dassl_files.saved(tmp_path, checkpoint)
    assert prove_student(read_foreign(file), tower, file) is False


def test_another_student_is_refused(checkpoint: Checkpoint, model: Any, tmp_path: Path) -> None:
    """Of another width, of another context length, and of the same shape with other weights."""
    file = dassl_files.saved(tmp_path, checkpoint)
    prompts, tokenizer = read_foreign(file), tower_reference.tokenizer()
    for kind, message in (("laion", "width 32 there, 48 here"), ("eos", "the start token's embedding differs by")):
        other = TextTower.from_clip(tower_reference.tiny_clip(kind), tokenizer)
        with pytest.raises(FingerprintError, match=message) as caught:
            prove_student(prompts, other, file)
        assert "`student`" in caught.value.hint
    short = TextTower.from_clip(tower_reference.tiny_clip("openai", context_length=40), tokenizer)
    with pytest.raises(FingerprintError, match="context length 77 there, 40 here"):
        prove_student(prompts, short, file)


def test_slots_that_leave_no_room_are_refused(tower: TextTower, tmp_path: Path) -> None:
    file = dassl_files.saved(tmp_path, {"state_dict": {"ctx": torch.zeros(75, 32)}})
    with pytest.raises(DataError, match="75 slots leave no room"):
        prove_student(read_foreign(file), tower, file)


def tensors(**changed: Any) -> Callable[[Checkpoint], Any]:
    """A change of the state dict."""
    return lambda checkpoint: checkpoint["state_dict"].update(changed)


NOT_FINITE = torch.zeros(4, 32)
NOT_FINITE[2, 7] = torch.nan
REFUSED: dict[str, Callable[[Checkpoint], Any]] = {
    r"context of its own for each of its 2 classes, \[2, 4, 32\]": tensors(ctx=torch.zeros(2, 4, 32)),
    "1 of 128 numbers of 'ctx' are not finite": tensors(ctx=NOT_FINITE),
    "128 of 128 numbers": tensors(ctx=torch.full((4, 32), torch.inf)),
    r"of shape \[slots, width\], found \[32\]": tensors(ctx=torch.zeros(32)),
    r"found \[0, 32\]": tensors(ctx=torch.zeros(0, 32)),
    "tensor of floating-point numbers: found Tensor of torch.int8": tensors(ctx=torch.zeros(4, 32, dtype=torch.int8)),
    "numbers: found list": tensors(ctx=[[0.0]]),
    "floating-point numbers": tensors(ctx=torch.zeros(4, 32).to_sparse()),
    "floating-point numbers: found": tensors(ctx=torch.zeros(4, 32, device="meta")),
    r"'token_prefix' of shape \[classes, positions, 32\], found \[2, 8\]": tensors(token_prefix=torch.zeros(2, 8)),
    r"'token_prefix' of .*found \[2, 1, 8\]": tensors(token_prefix=torch.zeros(2, 1, 8)),
    "one start token before the context, found 2": tensors(token_prefix=torch.zeros(2, 2, 32)),
    r"'token_suffix' of .*found \[2, 32\]": tensors(token_suffix=torch.zeros(2, 32)),
    "'token_suffix' of .*found str": tensors(token_suffix="x"),
    "expected 'ctx' in its state_dict, found 'token_prefix', 'token_suffix'": lambda c: c["state_dict"].pop("ctx"),
    "expected 'ctx' in its state_dict, found nothing": lambda c: c["state_dict"].clear(),
    "'prompt_learner.ctx'": lambda c: c.update(state_dict={"prompt_learner.ctx": torch.zeros(4, 32)}),
    "expected a 'state_dict', found 'epoch', 'optimizer'": lambda c: c.pop("state_dict"),
    "expected a 'state_dict', found 'state_dict'": lambda c: c.update(state_dict=[1]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_no_generic_context_is_refused(message: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Never guessed: the message says what was expected and what is there."""
    REFUSED[message](checkpoint)
    with pytest.raises(DataError, match=message) as caught:
        read_foreign(dassl_files.saved(tmp_path, checkpoint))
    assert "model.pth.tar-50" in caught.value.message


def test_a_bare_tensor_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a 'state_dict', found Tensor"):
        read_foreign(dassl_files.saved(tmp_path, torch.zeros(4, 32)))


class Runs:
    """A pickle that calls something when it is read."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Foreign:
    """An object of a class that Dassl's files do not have."""


CALLS: dict[str, Callable[[Path], Any]] = {
    "posix.mkdir": lambda target: Runs(os.mkdir, str(target)),
    "eval": lambda target: Runs(eval, f"open({str(target)!r}, 'w')"),
    "getattr": lambda target: Runs(getattr, "text", "upper"),
    "test_foreign_prompts.Foreign": lambda target: Foreign(),
    "torch.optim.adam.Adam": lambda target: torch.optim.Adam([nn.Parameter(torch.zeros(1))]),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["scheduler", "state_dict"])
@pytest.mark.parametrize("name", CALLS)
def test_a_pickled_call_is_never_made(
    name: str, place: str, legacy: bool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """In an older and a newer format, wherever it stands: what would be called is named, and was not."""
    target = tmp_path / "ran"
    call = CALLS[name](target)
    if place == "scheduler":
        checkpoint["scheduler"] = {"successor": call}
    else:
        checkpoint["state_dict"]["ctx"] = call
    file = dassl_files.saved(tmp_path, checkpoint, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(IntegrityError, match=f"{file.name} holds more than tensors .*: {name}; nothing of it was run"):
        read_foreign(file)
    assert not target.exists()


def test_an_object_that_is_passed_over_cannot_pass_for_a_context(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint["state_dict"]["ctx"] = np.float64(3)
    with pytest.raises(DataError, match="no tensor"):
        read_foreign(dassl_files.saved(tmp_path, checkpoint))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.95, 0.999])
def test_a_cut_off_file_is_refused(share: float, legacy: bool, checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = dassl_files.saved(tmp_path, checkpoint, _use_new_zipfile_serialization=not legacy)
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(IntegrityError, match="cannot be read as a checkpoint of torch.save"):
        read_foreign(file)


@pytest.mark.parametrize(
    "data", [b"hello world\n", b"", b"\x80\x02garbage", b"PK\x03\x04" * 9, b"\x80\x02}q\x00.", b"l."]
)
def test_what_torch_advises_is_not_passed_on(data: bytes, tmp_path: Path) -> None:
    """A file that is no checkpoint is called so; nobody is told to read it without protection."""
    file = tmp_path / "notes.txt"
    file.write_bytes(data)
    with pytest.raises((IntegrityError, DataError), match=r"notes\.txt") as caught:
        read_foreign(file)
    said = f"{caught.value.message} {caught.value.hint}".lower()
    assert "weights" not in said and "trusted" not in said and "torch.load" not in said
    assert "prompt_learner/model.pth.tar" in caught.value.hint


def test_no_flipped_bit_of_the_context_passes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Anywhere in the file: our error, or the context as it was."""
    wanted, rng = checkpoint["state_dict"]["ctx"].clone(), random.Random(0)
    file = dassl_files.saved(tmp_path, checkpoint)
    sound = file.read_bytes()
    start = sound.index(wanted.numpy().tobytes())
    places = [start + rng.randrange(wanted.nbytes) for _ in range(20)] + [rng.randrange(len(sound)) for _ in range(150)]
    for number, place in enumerate(places):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << rng.randrange(8)]) + sound[place + 1 :])
        try:
            prompts = read_foreign(file)
        except TeachOnceError as problem:
            assert file.name in problem.message
        else:
            assert number >= 20 and torch.equal(prompts.context, wanted), place


def test_parts_that_are_compressed_or_overlap_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A small file that would fill the memory, or be mapped wrongly."""
    file = dassl_files.saved(tmp_path, checkpoint)
    packed = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    file.write_bytes(packed.getvalue())
    with pytest.raises(IntegrityError, match="compressed or overlap"):
        read_foreign(file)


@pytest.mark.parametrize("data", [b"", b"\x80\x02}q\x00.", b"PK\x03\x04", b"{}", os.urandom(512)], ids=range(5))
def test_what_is_no_checkpoint_at_all_is_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.pth.tar-50"
    file.write_bytes(data)
    with pytest.raises((IntegrityError, DataError), match=file.name):
        read_foreign(file)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UsageError, match="is no file") as caught:
            read_foreign(path)
        assert "prompt_learner/model.pth.tar" in caught.value.hint


MORE: dict[str, tuple[str, Callable[[Checkpoint], Any]]] = {
    "CoCoOp": ("meta_net.linear1.weight", lambda c: c["state_dict"].update({"meta_net.linear1.weight": torch.ones(2)})),
    "deep prompts": (
        "compound_prompts_text.0",
        lambda c: c["state_dict"].update({"compound_prompts_text.0": torch.ones(2)}),
    ),
    "no tensor": ("n_cls", lambda c: c["state_dict"].update(n_cls=2)),
    "beside the state": ("ema", lambda c: c.update(ema={"ctx": [torch.ones(2)]})),
}


@pytest.mark.parametrize("case", MORE)
def test_what_would_not_be_used_is_refused_by_name(case: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A context without the network that moves it is another model."""
    name, add = MORE[case]
    add(checkpoint)
    with pytest.raises(DataError, match=re.escape(repr(name))):
        read_foreign(dassl_files.saved(tmp_path, checkpoint))
