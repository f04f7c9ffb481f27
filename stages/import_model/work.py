"""The work of `import-model`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from teachonce.core.files import new_folder
from teachonce.core.progress import Reporter
from teachonce.errors import IntegrityError, TeachOnceError
from teachonce.models.clip import LoadedClip, load_clip
from teachonce.models.spec import CONFIG, LOCAL_DIR
from teachonce.stages.import_model.parts import Converted
from teachonce.stages.import_model.release import read_release
from teachonce.stages.import_model.request import ImportModelRequest, ImportModelResult
from teachonce.stages.import_model.transformers_folder import read_folder
from teachonce.towers.image_tower import image_obstacle
from teachonce.towers.text_tower import text_obstacle

WEIGHTS = "open_clip_model.safetensors"


def import_model(request: ImportModelRequest, reporter: Reporter) -> ImportModelResult:
    """Write the folder of a model. The stage's `import_model` says what is raised."""
    if request.release is None:
        converted = read_folder(request.source)
    else:
        converted = read_release(request.source, request.release, request.tokenizer)
    with new_folder(request.out, reporter) as folder:
        _write(folder, converted)
        clip = _proved(folder, converted, request.out)
    return _result(request, converted, clip)


def _write(folder: Path, converted: Converted) -> None:
    # Copies: tensors of a pickle may be parts of one memory, which safetensors refuses.
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in converted.tensors.items()}
    try:
        save_file(tensors, folder / WEIGHTS)
    except SafetensorError as problem:
        number = re.search(r"os error (\d+)", str(problem))  # what the disk said, such as that it is full
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from problem
    document = {"model_cfg": converted.model_cfg, "preprocess_cfg": converted.preprocess_cfg}
    (folder / CONFIG).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for file in converted.tokenizer_files:
        shutil.copyfile(file, folder / file.name)


def _proved(folder: Path, converted: Converted, out: Path) -> LoadedClip:
    """Load the folder as every command does, try it out, and compare every weight."""
    try:
        clip = load_clip(f"{LOCAL_DIR}{folder}")
    except TeachOnceError as problem:  # the folder has not its name yet
        message, hint = (text.replace(str(folder), str(out)) for text in (problem.message, problem.hint))
        raise problem.reworded(message, hint) from problem
    for name, tensor in clip.model.state_dict().items():
        if not torch.equal(tensor, converted.tensors[name].to(tensor.dtype)):
            raise IntegrityError(
                f"{name}, written and loaded again, has other numbers",
                hint="convert again; if it comes again, the disk or its memory is faulty",
            )
    return clip


def _result(request: ImportModelRequest, converted: Converted, clip: LoadedClip) -> ImportModelResult:
    visual: Any = clip.model.visual
    preparing = visual.preprocess_cfg
    size = visual.image_size
    sha = hashlib.sha256()
    for file in converted.weight_files:
        with open(file, "rb") as opened:
            sha.update(hashlib.file_digest(opened, "sha256").digest())
    return ImportModelResult(
        model=f"{LOCAL_DIR}{request.out}",
        source=str(request.source),
        source_digest=sha.hexdigest(),
        release=request.release,
        parameters=sum(parameter.numel() for parameter in clip.model.parameters()),
        activation="quick-GELU" if converted.model_cfg.get("quick_gelu", False) else "GELU",
        image_size=tuple(size) if isinstance(size, (tuple, list)) else (size, size),
        mean=tuple(preparing["mean"]),
        std=tuple(preparing["std"]),
        interpolation=preparing["interpolation"],
        resize_mode=preparing["resize_mode"],
        text_prompts=text_obstacle(clip.model) or "yes",
        image_prompts=image_obstacle(clip.model) or "yes",
        digest=clip.digest,
        out=str(request.out),
    )
