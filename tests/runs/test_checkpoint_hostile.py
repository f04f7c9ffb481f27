"""Checkpoints made by somebody else, on purpose: refused by name, nothing runs, nothing is half loaded."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from teachonce.errors import IntegrityError, TeachOnceError
from teachonce.runs import checkpoint
from teachonce.runs.checkpoint import Identity, load_checkpoint, save_checkpoint
from teachonce.training.averaging import PromptAverage

HERE = Identity(config="c" * 16, store="s" * 16, student="t" * 16)


class Run:
    """A module, an optimiser that has taken a step, and an average."""

    def __init__(self, value: float = 1.0) -> None:
        self.module = nn.Module()
        self.module.context = nn.Parameter(torch.full((3, 4), value))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1)
        self.module.context.grad = torch.ones(3, 4)
        self.optimizer.step()
        self.average = PromptAverage("ema", 10, 0.9, 0.5, 0.1, dict(self.module.named_parameters()))
        self.average.update(0, dict(self.module.named_parameters()))

    def load(self, folder: Path) -> int:
        """Resume from a folder."""
        return load_checkpoint(folder, self.module, self.optimizer, HERE, self.average.state())

    def bits(self) -> list[bytes]:
        """Everything that loading could change."""
        state = self.optimizer.state_dict()["state"][0]
        tensors = [self.module.context, *self.average.state().values(), *state.values()]
        return [tensor.detach().numpy().tobytes() for tensor in tensors]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sound checkpoint after one step."""
    run = Run()
    return save_checkpoint(tmp_path, 1, run.module, run.optimizer, HERE, run.average.state())


def refused(file: Path, match: str = "") -> None:
    """The file is refused with its name, and the run that would have resumed keeps every bit."""
    run = Run(value=5.0)
    before = run.bits()
    with pytest.raises(IntegrityError, match=match) as caught:
        run.load(file.parent)
    assert file.name in caught.value.message and run.bits() == before


def with_header(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The same tensors under another header."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def overlap(header: dict[str, Any]) -> None:
    """Two tensors of one size in one place."""
    header["optimizer.context.exp_avg"]["data_offsets"] = header["optimizer.context.exp_avg_sq"]["data_offsets"]


def beyond(header: dict[str, Any]) -> None:
    """A tensor that ends behind the file."""
    start, end = header["parameter.context"]["data_offsets"]
    header["parameter.context"] |= {"data_offsets": [start, end + 4000], "shape": [1003, 4]}


def enormous(header: dict[str, Any]) -> None:
    """A shape whose size does not fit into 64 bits."""
    header["parameter.context"]["shape"] = [2**62, 2**62]


class Runs:
    """A pickle that would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "ran")


def test_a_pickle_under_a_checkpoints_name_does_not_run(file: Path, tmp_path: Path) -> None:
    """Neither a plain one nor what torch.save makes."""
    target = tmp_path / "ran"
    for write in (lambda: file.write_bytes(pickle.dumps(Runs(target))), lambda: torch.save(Runs(target), file)):
        write()
        refused(file, "is damaged")
        assert not target.exists()


FORGED: dict[str, Callable[[bytes], bytes]] = {
    "overlapping": lambda data: with_header(data, overlap),
    "beyond the end": lambda data: with_header(data, beyond),
    "enormous": lambda data: with_header(data, enormous),
    "no metadata": lambda data: with_header(data, lambda header: header.pop("__metadata__")),
    "header length beyond the file": lambda data: struct.pack("<Q", 2**63) + data[8:],
    "trailing bytes": lambda data: data + b"\0" * 64,
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_file_is_refused(how: str, file: Path) -> None:
    file.write_bytes(FORGED[how](file.read_bytes()))
    refused(file, "is damaged")


def test_a_header_of_200_mb_is_not_read(file: Path) -> None:
    """The file is that large; it holds no memory of that size."""
    file.write_bytes(struct.pack("<Q", 200_000_000))
    os.truncate(file, 200_000_008)
    refused(file, "is damaged: .*header too large")


def test_five_hundred_forged_headers_raise_nothing_else(file: Path) -> None:
    """Random bytes of the header replaced, the digest of the tensors as it was: our error, or no change at all."""
    sound, rng = file.read_bytes(), random.Random(3)
    length = int.from_bytes(sound[:8], "little")
    before = Run().bits()
    for _ in range(500):
        data = bytearray(sound)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(8 + length)] = rng.choice(b'0123456789"[]{},:-FIBU\x00\xff')
        file.write_bytes(data)
        run = Run(value=5.0)
        try:
            run.load(file.parent)
        except TeachOnceError as problem:
            assert file.name in problem.message
        else:
            assert run.bits() == before, bytes(data[: 8 + length])


def signed(folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> Path:
    """A file by somebody who knows the format: other tensors or metadata, with a digest that agrees with them."""
    file = next(folder.glob("step-*.safetensors"))
    tensors, metadata = checkpoint._read(file)  # noqa: SLF001 - what a forger can write too
    change(tensors, metadata)
    metadata.pop("digest")
    signature = {"digest": checkpoint._digest(tensors, metadata)}  # noqa: SLF001
    file.write_bytes(save(tensors, metadata=metadata | signature))
    return file


def replaced(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor], Mapping[str, str]], None]:
    """A change of one tensor."""
    return lambda tensors, metadata: tensors.update({name: tensor})


FOREIGN: dict[str, Callable[[dict[str, Tensor], dict[str, str]], Any]] = {
    "one row that would be broadcast": replaced("parameter.context", torch.ones(4)),
    "one number": replaced("parameter.context", torch.ones(1, 1)),
    "float64": replaced("parameter.context", torch.ones(3, 4, dtype=torch.float64)),
    "integers": replaced("average.context", torch.ones(3, 4, dtype=torch.int32)),
    "a moment of another shape": replaced("optimizer.context.exp_avg", torch.ones(4)),
    "a frozen weight": replaced("parameter.tower", torch.ones(2)),
    "a moment too many": replaced("optimizer.context.max_exp_avg_sq", torch.ones(3, 4)),
    "a moment of nothing": replaced("optimizer.gone.exp_avg", torch.ones(3, 4)),
    "a name without a meaning": replaced("extra", torch.ones(1)),
    "no parameter": lambda tensors, metadata: tensors.pop("parameter.context"),
    "no moment": lambda tensors, metadata: tensors.pop("optimizer.context.exp_avg_sq"),
    "no optimiser": lambda tensors, metadata: [tensors.pop(name) for name in list(tensors) if "optimizer" in name],
    "no average": lambda tensors, metadata: tensors.pop("average.context"),
    "no weight of the average": lambda tensors, metadata: tensors.pop("average.log_weight"),
}


@pytest.mark.parametrize("how", FOREIGN)
def test_other_tensors_are_refused_each_by_name(how: str, file: Path) -> None:
    """Even where a digest vouches for them: kinds, shapes and names are exactly those of the run."""
    refused(signed(file.parent, FOREIGN[how]), "does not hold the tensors of this run: .*: expected .*, found ")


MISNAMED: dict[str, Callable[[dict[str, Tensor], dict[str, str]], Any]] = {
    "another step": lambda tensors, metadata: metadata.update(step="7"),
    "a negative step": lambda tensors, metadata: metadata.update(step="-1"),
    "words for a step": lambda tensors, metadata: metadata.update(step="one"),
    "foreign digits": lambda tensors, metadata: metadata.update(step="²"),
    "no step": lambda tensors, metadata: metadata.pop("step"),
    "no identity": lambda tensors, metadata: metadata.pop("identity"),
    "no JSON": lambda tensors, metadata: metadata.update(identity="{"),
    "a list": lambda tensors, metadata: metadata.update(identity="[1, 2]"),
}


@pytest.mark.parametrize("how", MISNAMED)
def test_metadata_without_meaning_are_refused(how: str, file: Path) -> None:
    refused(signed(file.parent, MISNAMED[how]), "is damaged")


def test_an_optimiser_of_another_kind_is_refused(file: Path) -> None:
    """Its config would differ as well; this holds by itself."""
    run = Run()
    run.optimizer = torch.optim.SGD(run.module.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(IntegrityError, match="momentum_buffer: expected float32"):
        run.load(file.parent)
    run.optimizer = torch.optim.Adagrad(run.module.parameters())
    with pytest.raises(TeachOnceError, match="what Adagrad remembers"):
        run.load(file.parent)
