"""What `import-model` refuses before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from teachonce.core.files import require_new
from teachonce.errors import UsageError, did_you_mean
from teachonce.models.catalogue import catalogue
from teachonce.phrases import phrase
from teachonce.stages.import_model.request import ImportModelRequest

FOLDER_CONFIG = "config.json"
ARRAYS = (".npz", ".npy")


def check(request: ImportModelRequest) -> None:
    """Refuse what can be refused before weights are read.

    Raises:
        UsageError: the source is missing or of neither kind, the release is missing, unknown or one too many, or the
            folder is not empty.
    """
    source = request.source
    if source.is_dir():
        if request.release is not None:
            raise UsageError(
                f"{source} is a folder, and says itself what it holds",
                hint=phrase("leave out {as}, or give the file of weights alone"),
            )
        if not (source / FOLDER_CONFIG).is_file():
            raise UsageError(
                f"{source} holds no {FOLDER_CONFIG}: it is no model folder of transformers",
                hint=phrase("give the whole folder, or a file of weights with the name of its release, {as} NAME/TAG"),
            )
    elif not source.is_file():
        raise UsageError(
            f"{source} is neither a file nor a folder",
            hint="give a folder on this disk; one of the Hugging Face hub is fetched by: hf download ORG/NAME",
        )
    else:
        _check_release(source, request.release)
    if request.tokenizer is not None and not request.tokenizer.is_dir():
        raise UsageError(f"{request.tokenizer} is no folder", hint="give the folder with the tokenizer's files")
    require_new(request.out)


def _check_release(source: Path, release: str | None) -> None:
    if source.suffix in ARRAYS:
        raise UsageError(
            f"{source} holds arrays of big_vision", hint="give the safetensors file of the same model of open_clip"
        )
    if release is None:
        raise UsageError(
            f"{source} is a file of weights, and says neither how images are prepared for them nor which activation "
            "they were trained with",
            hint=phrase("name the release that they are, or were trained further from: {as} ViT-B-32/openai"),
        )
    known = catalogue()
    names = [f"{one.name}/{tag}" for one in known.architectures for tag in one.weights]
    if release not in names:
        near = did_you_mean(release, names)
        raise UsageError(
            f"'{release}' is no model of open_clip {known.open_clip}" + (f"; {near}" if near.startswith("did") else ""),
            hint="teachonce models lists all",
        )
