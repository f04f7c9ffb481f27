"""What is installed: Python and packages, torch and its device, Dask, Zarr and a model, each tried for a moment."""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from teachonce.errors import TeachOnceError
from teachonce.stages.doctor.request import Finding

LEAST_PYTHON = (3, 11)
WORDS = ["a photo of a red fox."]
ANSWER_SECONDS = 120  # for a worker to start and to do one task on a busy machine


@dataclass(frozen=True)
class Hole:
    """A version range of a package with a published hole that reading foreign files can reach."""

    package: str
    below: str
    """The first version without the hole."""
    source: str


HOLES = (
    Hole("torch", "2.6.0", "CVE-2025-32434: code runs from a checkpoint in spite of weights_only"),
    Hole("pillow", "11.3.0", "CVE-2025-48379: a DDS image overflows a buffer"),
    Hole("pyarrow", "14.0.1", "CVE-2023-47248: code runs from a parquet file"),
    Hole("jinja2", "3.1.6", "CVE-2025-27516: a template leaves its sandbox"),
    Hole("tornado", "6.5", "CVE-2025-47287: a request fills the log of Dask's scheduler"),
)
"""Of packages that this project uses. The table is small and ages: `pip-audit` asks a data base that does not."""


def look(model: str | None) -> list[Finding]:
    """Everything that this module tries."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which looks once
    findings = [python(), holes()]
    findings += [tried(what, trial) for what, trial in (("torch", torch_works), ("zarr", zarr_sees_a_flipped_bit))]
    findings.append(tried("dask", dask_works))
    if model is not None:
        findings.append(tried("model", lambda: model_works(model)))
    return findings


def python() -> Finding:
    """Its version, and whether that is a version that this project runs on."""
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < LEAST_PYTHON:
        return Finding(what="python", standing="FAIL", found=text, remedy="install Python 3.11 or newer")
    return Finding(what="python", standing="OK", found=text)


def holes() -> Finding:
    """Installed versions with a hole that is known."""
    known = [hole for hole in HOLES if _installed(hole.package) and _older(_installed(hole.package), hole.below)]
    if not known:
        return Finding(what="versions", standing="OK", found="none with a hole that `doctor` knows")
    text = "; ".join(f"{hole.package} {_installed(hole.package)}: {hole.source}" for hole in known)
    remedy = "pip install " + " ".join(f"'{hole.package}>={hole.below}'" for hole in known)
    return Finding(what="versions", standing="WARN", found=text, remedy=remedy)


def torch_works() -> Finding:
    """A product on the CPU, and on the GPU where there is one."""
    import torch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        if float((torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum()) != 512.0:
            return Finding(
                what="torch", standing="FAIL", found=f"a product on {device} is wrong", remedy="install torch again"
            )
    if len(devices) == 1 and Path("/dev/nvidia0").exists():
        text = f"{torch.__version__} sees no GPU, and this machine has one"
        return Finding(
            what="torch", standing="WARN", found=text, remedy="install the build of torch that fits its driver"
        )
    where = torch.cuda.get_device_name() if len(devices) > 1 else "the CPU: no GPU is seen"
    return Finding(what="torch", standing="OK", found=f"{torch.__version__} on {where}")


def zarr_sees_a_flipped_bit() -> Finding:
    """An array as stores have it, written, damaged by one bit, and read: the checksum must notice."""
    import numpy as np
    import zarr

    from teachonce.labels.format import create_static_array

    with tempfile.TemporaryDirectory(prefix="teachonce-doctor-") as folder:
        root = zarr.create_group(folder, zarr_format=3)
        values = np.arange(4096, dtype=np.uint32)
        create_static_array(root, "values", values)
        if not np.array_equal(_values_in(folder), values):
            raise ValueError("what was written was not read back")
        chunk = next(file for file in Path(folder, "values").rglob("*") if file.is_file() and file.name != "zarr.json")
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
        try:
            _values_in(folder)
        except Exception:  # noqa: BLE001 - which error it is differs by version; that there is one counts
            return Finding(what="zarr", standing="OK", found=f"{zarr.__version__} notices a flipped bit")
    raise ValueError("a flipped bit was read as if nothing were")


def _values_in(folder: str) -> Any:
    import zarr

    array: Any = zarr.open_group(folder, mode="r")["values"]
    return array[:]


def dask_works() -> Finding:
    """One worker starts, does a task, and ends."""
    import distributed

    from teachonce.cluster.client import local_cluster

    with local_cluster(1) as client:
        answer = client.submit(sum, (1, 2), pure=False).result(timeout=ANSWER_SECONDS)
    if answer != 3:
        raise ValueError(f"a worker says that 1 + 2 is {answer}")
    return Finding(what="dask", standing="OK", found=f"{distributed.__version__}: a worker answers")


def model_works(spec: str) -> Finding:
    """The model loads from this machine alone, and its tokenizer, text tower and image tower give finite features."""
    import torch
    from PIL import Image

    from teachonce.models.clip import load_clip

    clip = load_clip(spec)
    tokens = clip.tokenizer(WORDS)
    text = clip.model.encode_text(tokens)  # type: ignore[operator]
    image = clip.encode_images(clip.prepare(Image.new("RGB", (64, 48), "red")).unsqueeze(0))
    if not bool(torch.isfinite(text).all() and torch.isfinite(image).all()):
        remedy = "fetch its weights again: they are damaged"
        return Finding(what="model", standing="FAIL", found=f"{spec} gives features that are no numbers", remedy=remedy)
    text = f"{spec}: features of {image.shape[-1]} numbers, weights {clip.digest[:12]}"
    return Finding(what="model", standing="OK", found=text)


def tried(what: str, trial: Callable[[], Finding]) -> Finding:
    """A trial's finding; whatever it raises is one, too."""
    try:
        return trial()
    except TeachOnceError as problem:
        return Finding(what=what, standing="FAIL", found=problem.message, remedy=str(problem.hint))
    except Exception as problem:  # noqa: BLE001 - a trial is there to fail
        remedy = f"install it again, or another version of it: pip install {what}"
        text = f"{type(problem).__name__}: {problem}"
        return Finding(what=what, standing="FAIL", found=text, remedy=remedy)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _older(here: str, below: str) -> bool:
    return _release(here) < _release(below)


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version: of `2.14.1+cu128` they are 2, 14 and 1."""
    numbers = [int(number) for number in re.findall(r"\d+", re.split(r"[+a-z]", text)[0])]
    return tuple([*numbers, 0, 0, 0][:3])
