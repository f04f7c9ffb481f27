"""Devices by name, and what their failures say: always exit 6 with the numbers and what helps, never a bug of ours."""

from __future__ import annotations

import pickle

import pytest
import torch

from teachonce.cli.app import describe
from teachonce.core import devices
from teachonce.core.devices import (
    OTHERS,
    DeviceFault,
    device_explained,
    device_facts,
    device_fault,
    pick_device,
    take_device,
)
from teachonce.errors import EnvironmentFault, UsageError

FULL = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 79.11 GiB of which 1.25 GiB is free."
    " Process 4711 has 17.00 GiB memory in use. Including non-PyTorch memory, this process has 60.80 GiB memory in use."
    " Of the allocated memory 58.00 GiB is allocated by PyTorch, and 1.00 GiB is reserved by PyTorch but unallocated."
)
SMALL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 512.00 MiB of which 3.00 MiB is"
    " free."
)
NO_MEMORY = [
    (
        torch.OutOfMemoryError(FULL),
        ("cuda:1", "2.5 GiB", "1.2 GiB of 79.1", "process 4711 holds 17.0 GiB", "60.8 GiB"),
    ),
    (torch.OutOfMemoryError(SMALL), ("cuda:0", "20 MiB", "3 MiB of 0.5 GiB")),
    (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported", 2), ("no memory",)),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ("no memory",)),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), ("no memory",)),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB). Tried to allocate 1.00 GB on private pool."), ()),
]
LOST = [
    torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable\nSearch for it", 46),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered", 214),
    torch.AcceleratorError("CUDA error: unspecified launch failure", 719),
    RuntimeError("No CUDA GPUs are available"),
    RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before?"),
]
BUGS = [
    torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    ValueError("out of memory"),
]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, the first of an older kind."""
    monkeypatch.setattr(devices, "_taken", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    kinds = {"cuda:0": (7, 0), "cuda:1": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: kinds[device])


def test_a_device_is_what_its_name_says(gpus: None) -> None:
    """auto and cuda are the worker's own GPU, a number is that GPU, and the CPU is the CPU although there are GPUs."""
    assert [pick_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    assert [pick_device("auto", worker) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]


def test_a_device_that_was_taken_is_what_auto_means_from_then_on(gpus: None) -> None:
    assert take_device("cuda", 1) == "cuda:1" and pick_device() == pick_device("cuda") == "cuda:1"
    assert take_device("cpu", 1) == "cpu" and pick_device() == "cpu" and pick_device("cuda:1") == "cuda:1"


def test_bf16_is_for_gpus_that_have_it_in_hardware(gpus: None) -> None:
    assert [device_facts(name).bf16 for name in ("cuda:0", "cuda:1", "cpu")] == [False, True, False]


def test_a_machine_without_a_gpu_computes_on_its_cpu_and_says_so_when_asked_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_taken", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == "cpu"
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(DeviceFault) as caught:
            pick_device(name)
        assert caught.value.exit_code == EnvironmentFault.exit_code == 6 and "`device` auto" in caught.value.hint


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(gpus: None) -> None:
    with pytest.raises(DeviceFault, match="cuda:7.*2 GPUs, cuda:0 to cuda:1"):
        pick_device("cuda:7")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:1,2", "", "cuda:-1"])
def test_what_names_no_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="cuda:1"):
        pick_device(name)


@pytest.mark.parametrize(("problem", "words"), NO_MEMORY, ids=lambda value: str(value)[:30])
def test_out_of_memory_is_exit_6_with_the_numbers(problem: RuntimeError, words: tuple[str, ...]) -> None:
    """Wherever it is raised: the place that knows what helps says it, and without one the command line still does."""
    failure = describe(problem)
    assert failure.exit_code == 6 and "nvidia-smi" in failure.hint
    assert "bug" not in failure.hint and all(word in failure.message for word in words), failure.message
    with pytest.raises(DeviceFault) as caught, device_explained("a smaller class_chunk"):
        raise problem
    assert caught.value.hint == "a smaller class_chunk" and caught.value.message == failure.message


@pytest.mark.parametrize("problem", LOST, ids=lambda problem: str(problem)[:40])
def test_a_busy_or_lost_gpu_is_exit_6(problem: RuntimeError) -> None:
    """A smaller batch would not help, so that the hint is not about one."""
    failure = describe(problem)
    assert failure.exit_code == 6 and "nvidia-smi" in failure.hint and str(problem).split("\n")[0] in failure.message
    with pytest.raises(DeviceFault) as caught, device_explained("a smaller class_chunk"):
        raise problem
    assert caught.value.hint == failure.hint


@pytest.mark.parametrize("problem", BUGS, ids=lambda problem: str(problem)[:40])
def test_what_is_a_bug_stays_one(problem: Exception) -> None:
    assert device_fault(problem) is None and describe(problem).exit_code == 1
    with pytest.raises(type(problem)), device_explained("a smaller class_chunk"):
        raise problem


def test_the_nearest_advice_wins_and_survives_a_journey() -> None:
    """What was explained in a worker travels as it is; only advice that fits everything is replaced by a better one."""
    for inner, wanted in (("", "outer"), ("inner", "inner")):
        with pytest.raises(DeviceFault) as caught, device_explained("outer"), device_explained(inner):
            raise pickle.loads(pickle.dumps(torch.OutOfMemoryError(FULL)))  # noqa: S301 - as Dask does
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
        assert (again.hint, again.memory, again.message) == (wanted, True, caught.value.message)
    assert "nvidia-smi" in OTHERS
