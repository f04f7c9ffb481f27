"""Checkpoints hold exactly what a resumed run needs; damage, mix-ups and absence are errors that say so."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from teachonce.errors import FingerprintError, IntegrityError, TeachOnceError, UsageError
from teachonce.runs.checkpoint import KEEP, Identity, load_checkpoint, save_checkpoint

HERE = Identity(config="c" * 16, store="s" * 16, student="t" * 16)


class Prompted(nn.Module):
    """Two trainable tensors and a frozen tower that must not be saved."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.context = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.tower = nn.Linear(4, 5).requires_grad_(False)
        with torch.no_grad():
            for parameter in self.tower.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(9))
        self.query = nn.Parameter(torch.randn(2, 3, 4, generator=generator))

    def trainable(self) -> list[nn.Parameter]:
        """What an optimiser gets."""
        return [p for p in self.parameters() if p.requires_grad]


def an_optimizer(kind: str, module: Prompted, fused: bool | None = None) -> torch.optim.Optimizer:
    """One of the optimisers of a config; fused as on a GPU."""
    if kind == "adamw":
        return torch.optim.AdamW(module.trainable(), lr=0.1, fused=fused)
    return torch.optim.SGD(module.trainable(), lr=0.1, momentum=0.0 if kind == "sgd" else 0.9, fused=fused)


def train(module: Prompted, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps whose data depends on the step number only."""
    for step in range(first, last):
        optimizer.zero_grad()
        data = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        (
            module.tower((data @ module.context.T).sin() @ module.context).sin().mean() + module.query.sin().sum()
        ).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "momentum", "sgd"])
def test_a_resumed_run_is_bit_identical(kind: str, tmp_path: Path) -> None:
    """Twelve steps, or seven, a checkpoint, a new process's objects, five more: the same bits."""
    straight = Prompted()
    train(straight, an_optimizer(kind, straight), 0, 12)
    begun = Prompted()
    optimizer = an_optimizer(kind, begun)
    train(begun, optimizer, 0, 7)
    save_checkpoint(tmp_path, 7, begun, optimizer, HERE)
    resumed = Prompted(seed=5)
    optimizer = an_optimizer(kind, resumed)
    assert load_checkpoint(tmp_path, resumed, optimizer, HERE) == 7
    train(resumed, optimizer, 7, 12)
    assert torch.equal(resumed.context, straight.context) and torch.equal(resumed.query, straight.query)


@pytest.mark.parametrize("first", [True, None])
@pytest.mark.parametrize("kind", ["adamw", "momentum", "sgd"])
def test_a_run_goes_on_with_the_other_form_of_its_optimiser(kind: str, first: bool | None, tmp_path: Path) -> None:
    """From a GPU, where it is fused, to a CPU and back: the same tensors are saved, the prompts are equal to 1e-6."""
    straight = Prompted()
    train(straight, an_optimizer(kind, straight), 0, 12)
    begun = Prompted()
    optimizer = an_optimizer(kind, begun, first)
    train(begun, optimizer, 0, 7)
    save_checkpoint(tmp_path, 7, begun, optimizer, HERE)
    resumed = Prompted(seed=5)
    optimizer = an_optimizer(kind, resumed, None if first else True)
    assert load_checkpoint(tmp_path, resumed, optimizer, HERE) == 7
    assert optimizer.param_groups[0]["fused"] is (None if first else True)
    train(resumed, optimizer, 7, 12)
    for ours, plain in ((resumed.context, straight.context), (resumed.query, straight.query)):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    if kind == "adamw":
        assert all(float(state["step"]) == 12 for state in optimizer.state.values())


def test_frozen_weights_are_not_saved(tmp_path: Path) -> None:
    """A checkpoint holds the trained tensors and the optimiser's state, nothing of the tower."""
    module = Prompted()
    optimizer = an_optimizer("adamw", module)
    train(module, optimizer, 0, 1)
    file = save_checkpoint(tmp_path, 1, module, optimizer, HERE)
    with safe_open(file, framework="pt") as opened:
        names = set(opened.keys())
    state = {f"optimizer.{p}.{key}" for p in ("context", "query") for key in ("step", "exp_avg", "exp_avg_sq")}
    assert names == {"parameter.context", "parameter.query"} | state


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    """The newest `KEEP` stay; the newest is the one that is loaded."""
    module = Prompted()
    optimizer = an_optimizer("adamw", module)
    train(module, optimizer, 0, 1)
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, module, optimizer, HERE)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "step-00000010.safetensors",
        "step-00000100.safetensors",
    ]
    assert KEEP == 2 and load_checkpoint(tmp_path, module, optimizer, HERE) == 100


def test_resume_with_nothing_to_resume_is_an_error(tmp_path: Path) -> None:
    """Never a silent start from scratch."""
    module = Prompted()
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UsageError, match="nothing to resume"):
            load_checkpoint(folder, module, an_optimizer("sgd", module), HERE)


@pytest.mark.parametrize("name", ["config", "store", "student"])
def test_another_config_store_or_student_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """The message says which of the three differs, and both values."""
    module = Prompted()
    optimizer = an_optimizer("sgd", module)
    save_checkpoint(tmp_path, 1, module, optimizer, HERE)
    with pytest.raises(FingerprintError, match=f"belongs to another {name}: {name} there .*, here zzzz"):
        load_checkpoint(tmp_path, module, optimizer, Identity(**(vars(HERE) | {name: "z" * 16})))


def test_other_tensors_are_refused_by_name(tmp_path: Path) -> None:
    """Strict: a module with more or fewer trainable tensors is another module."""
    module = Prompted()
    save_checkpoint(tmp_path, 1, module, an_optimizer("sgd", module), HERE)
    module.query.requires_grad_(False)
    with pytest.raises(IntegrityError, match="parameter.query"):
        load_checkpoint(tmp_path, module, an_optimizer("sgd", module), HERE)


def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    """300 flips over the file, header included: each is refused, or changes nothing that is loaded."""
    module = Prompted()
    optimizer = an_optimizer("adamw", module)
    train(module, optimizer, 0, 3)
    file = save_checkpoint(tmp_path, 3, module, optimizer, HERE)
    sound = file.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    rng = random.Random(0)
    places = [rng.randrange(header) for _ in range(200)] + [rng.randrange(header, len(sound)) for _ in range(100)]
    silent = []
    for place in places:
        bit = rng.randrange(8)
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << bit]) + sound[place + 1 :])
        fresh = Prompted(seed=3)
        try:
            step = load_checkpoint(tmp_path, fresh, an_optimizer("adamw", fresh), HERE)
        except TeachOnceError as problem:
            assert file.name in str(problem)
        except Exception as problem:  # noqa: BLE001 - a traceback is what must not happen
            silent.append((place, bit, repr(problem)))
        else:
            silent.append((place, bit, step, sound[max(0, place - 12) : place + 12]))
    assert silent == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_off_checkpoint_is_refused_by_name(share: float, tmp_path: Path) -> None:
    """Empty, cut in the header, cut in the data."""
    module = Prompted()
    optimizer = an_optimizer("adamw", module)
    train(module, optimizer, 0, 1)
    file = save_checkpoint(tmp_path, 1, module, optimizer, HERE)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(IntegrityError, match=file.name) as caught:
        load_checkpoint(tmp_path, module, optimizer, HERE)
    assert "resume from the one before" in caught.value.hint


def test_a_write_that_fails_leaves_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk full at the rename: an error, the old file whole, no debris that looks like a checkpoint."""
    module = Prompted()
    optimizer = an_optimizer("sgd", module)
    save_checkpoint(tmp_path, 1, module, optimizer, HERE)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(TeachOnceError, match="No space left"):
        save_checkpoint(tmp_path, 2, module, optimizer, HERE)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path, module, optimizer, HERE) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000001.safetensors"]
