"""The guard itself: faults of every kind are put in, and each is raised or counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from fake_gpu import TESTED, FakeGpu, Kind, is_tried
from tally import (
    HIDDEN_COPY,
    WAITS_FOR_A_NUMBER,
    WAITS_FOR_A_SHAPE,
    WAITS_FOR_A_TENSOR,
    WAITS_FOR_AN_EVENT,
    Copy,
)
from torch import Tensor

pytestmark = pytest.mark.skipif(not is_tried(), reason=f"the guard was tried with PyTorch {', '.join(TESTED)} only")


@pytest.fixture(params=["cuda", "fakegpu"])
def gpu(request: pytest.FixtureRequest) -> Iterator[FakeGpu]:
    """Both devices."""
    kind: Kind = request.param
    with FakeGpu(kind) as fake:
        yield fake


def here(gpu: FakeGpu, *shape: int) -> Tensor:
    """A tensor on the device; what its making costs is not counted."""
    x = torch.ones(shape).to(gpu.device)
    gpu.tally.clear()
    return x


MIXED: dict[str, Callable[[Tensor], object]] = {
    "a sum": lambda x: x + torch.ones(6, 4),
    "a mask": lambda x: x.masked_fill(torch.ones(6, 4, dtype=torch.bool), 0.0),
    "a gather": lambda x: x.gather(1, torch.zeros(6, 1, dtype=torch.int64)),
    "rows that are put in": lambda x: x.index_copy(0, torch.tensor([0]), torch.ones(1, 4)),
    "a joint": lambda x: torch.cat([x, torch.ones(1, 4)]),
    "a product": lambda x: x @ torch.ones(4, 2),
}
WAITS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "float": (lambda x: float(x.sum()), WAITS_FOR_A_NUMBER),
    "bool": (lambda x: bool((x > 0).any()), WAITS_FOR_A_NUMBER),
    "cpu": (lambda x: x.cpu(), WAITS_FOR_A_TENSOR),
    "a choice by a mask": (lambda x: x[x > 0], WAITS_FOR_A_SHAPE),
    "nonzero": (lambda x: x.nonzero(), WAITS_FOR_A_SHAPE),
    "unique": (lambda x: x.unique(), WAITS_FOR_A_SHAPE),
    "an index on the CPU": (lambda x: x[torch.tensor([0, 1])], HIDDEN_COPY),
}


@pytest.mark.parametrize("fault", MIXED)
def test_a_cpu_tensor_beside_one_of_the_gpu_is_refused(fault: str, gpu: FakeGpu) -> None:
    x = here(gpu, 6, 4)
    with pytest.raises(Exception, match="device"):
        MIXED[fault](x)


@pytest.mark.parametrize("fault", WAITS)
def test_what_makes_the_host_wait_is_counted(fault: str, gpu: FakeGpu) -> None:
    ask, what = WAITS[fault]
    ask(here(gpu, 6, 4))
    assert gpu.tally.asked == {what: 1}


def test_a_list_of_numbers_is_counted(gpu: FakeGpu) -> None:
    here(gpu, 6, 4).tolist()
    assert gpu.tally.asked.total() >= 1


def test_a_copy_to_the_device_blocks_unless_it_is_pinned_and_told_not_to(gpu: FakeGpu) -> None:
    plain, pinned = torch.ones(8), torch.ones(8).pin_memory()
    made_pinned = torch.empty(8, pin_memory=True)
    for source, non_blocking in ((plain, False), (plain, True), (pinned, False), (pinned, True), (made_pinned, True)):
        source.to(gpu.device, non_blocking=non_blocking)
    torch.tensor([1.0, 2.0], device=gpu.device)
    assert gpu.tally.blocking == 4
    assert {(copy.pinned, copy.non_blocking) for copy in gpu.tally.copies} == {
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    }
    assert Copy("x.py:1", True, True).blocks is False
    assert gpu.tally.copied == 5 * 32 + 8


def test_views_are_no_kernels_and_an_operation_is_one(gpu: FakeGpu) -> None:
    x = here(gpu, 6, 4)
    y = x.T[1:].unsqueeze(0).split(1, 1)
    assert gpu.tally.launches == 0 and len(y) == 3
    assert (x * 2).shape == (6, 4)
    assert gpu.tally.kernels == {"mul.Tensor": 1} and gpu.tally.moved == 2 * 6 * 4 * 4


def test_a_tensor_on_the_cpu_keeps_its_numbers(gpu: FakeGpu) -> None:
    assert (torch.arange(4) * 2).tolist() == [0, 2, 4, 6]
    assert gpu.tally.launches == 0 and not gpu.tally.waits


def test_backward_operations_are_watched_where_the_engine_runs() -> None:
    with FakeGpu("fakegpu") as gpu:
        w = here(gpu, 4, 3).requires_grad_()
        y = (here(gpu, 6, 4) @ w).square().sum()
        gpu.tally.clear()
        (gradient,) = torch.autograd.grad(y, [w])
        assert gradient.shape == w.shape and gradient.device.type == "fakegpu"
        assert gpu.tally.kernels["mm.default"] == 1


def test_autocast_is_that_of_cuda() -> None:
    with FakeGpu("cuda") as gpu, torch.autocast("cuda", torch.bfloat16):
        y = here(gpu, 6, 4) @ here(gpu, 4, 3)
        assert (y.dtype, y.softmax(-1).dtype) == (torch.bfloat16, torch.float32)


def test_a_wait_for_an_event_is_counted_and_a_copy_that_nobody_waits_for_is_not() -> None:
    with FakeGpu("cuda") as gpu:
        here(gpu, 4).to("cpu", non_blocking=True)
        assert not gpu.tally.waits and gpu.tally.late.total() == 1
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
        assert gpu.tally.asked == {WAITS_FOR_AN_EVENT: 1}


def test_nothing_is_left_of_it_afterwards() -> None:
    before = (torch.empty, torch.nn.Module.to, torch.cuda.is_available())
    with contextlib.suppress(ZeroDivisionError), FakeGpu("cuda"):
        raise ZeroDivisionError
    assert (torch.empty, torch.nn.Module.to, torch.cuda.is_available()) == before
    assert torch.ones(2).tolist() == [1.0, 1.0]
