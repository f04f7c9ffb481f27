"""What open_clip knows by name, and what a model needs beside it: read from open_clip's own files, which never run.

Importing open_clip takes ten seconds, reading its tables a hundredth of one: a wrong name is found before torch is
loaded. Where the tables cannot be read, such as those of a later version, nothing is refused here.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from teachonce.core.documents import json_in
from teachonce.errors import EnvironmentFault, UsageError
from teachonce.phrases import Phrase, command_line

HF_PACKAGES = ("transformers", "sentencepiece", "tokenizers", "protobuf")
"""What the extra `hf` brings."""
HF_LINE = "pip install 'teachonce[hf]'"
LIST_ALL = Phrase(command_line("models"), " lists all")
EXAMPLE = Phrase("for example ViT-L-14/openai; ", LIST_ALL)
MOST_TAGS = 12  # of an architecture in one message
_NEAR = 0.6  # how alike a name must be to be proposed


def require_known(spec: str, architecture: str, tag: str) -> None:
    """Refuse an architecture that open_clip does not have, or weights that it does not have for that architecture.

    Raises:
        UsageError: with the nearest name, or the weights that there are.
    """
    tags = released()
    if tags is None:
        return
    here = f"open_clip {_version()}"
    if architecture not in {*architectures(), *tags}:
        near = nearest(f"{architecture}/{tag}", [f"{name}/{one}" for name, some in tags.items() for one in some])
        near = near or nearest(architecture, [*architectures(), *tags])
        asked = f": did you mean '{near}'?" if near else ""
        raise UsageError(
            f"'{spec}' is not a model: {here} has no architecture '{architecture}'{asked}",
            hint=EXAMPLE,
        )
    if cleaned(tag) not in tags.get(architecture, ()):
        raise UsageError(f"'{spec}' is not a model: {_no_such_weights(architecture, tag, tags, here)}", hint=LIST_ALL)


def _no_such_weights(architecture: str, tag: str, tags: Mapping[str, tuple[str, ...]], here: str) -> str:
    weights = tags.get(architecture, ())
    if not weights:
        return f"{here} has no weights for the architecture '{architecture}'"
    near = nearest(cleaned(tag), weights)
    if near:
        return f"{architecture} has no weights '{tag}' in {here}: did you mean '{architecture}/{near}'?"
    more = f" and {len(weights) - MOST_TAGS} more" if len(weights) > MOST_TAGS else ""
    return f"{architecture} has no weights '{tag}' in {here}, only {', '.join(weights[:MOST_TAGS])}{more}"


def require_hf(config: object, spec: str) -> None:
    """Refuse a model whose tokenizer or text tower needs a package that is not installed here.

    Args:
        config: the model's configuration (`spec.config_of`); None where it is not at hand: then nothing is refused.
        spec: the model, for the message.

    Raises:
        EnvironmentFault: with the line that installs it.
    """
    text = text_config(config)
    wanted = [key for key in ("hf_tokenizer_name", "hf_model_name") if text.get(key)]
    if wanted and not installed("transformers"):
        part = "text tower" if "hf_model_name" in wanted else "tokenizer"
        raise EnvironmentFault(
            f"'{spec}' needs the package 'transformers', which is not installed here: its {part} is made by it",
            hint=HF_LINE,
        )


def text_config(config: object) -> Mapping[str, object]:
    """The part of a model's configuration that is about its text tower; empty where there is none."""
    text = config.get("text_cfg") if isinstance(config, Mapping) else None
    return text if isinstance(text, Mapping) else {}


def cleaned(tag: str) -> str:
    """A tag of weights as open_clip looks it up."""
    return tag.lower().replace("-", "_")


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str | None:
    """The known name that resembles a word most, in whatever case it was written; None if none does."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower()[:200], by_lower, n=1, cutoff=_NEAR)
    return by_lower[near[0]] if near else None


def architectures() -> list[str]:
    """The architectures that open_clip has, with weights or without; those that a program has added too."""
    folder = _folder()
    loaded = sys.modules.get("open_clip")
    added = loaded.list_models() if loaded is not None else []
    shipped = sorted(file.stem for file in (folder / "model_configs").glob("*.json")) if folder else []
    return list(dict.fromkeys([*shipped, *added]))


def built_in_config(architecture: str) -> object:
    """The configuration of an architecture as open_clip ships it; None where it ships none."""
    folder = _folder()
    path = folder / "model_configs" / f"{architecture}.json" if folder else None
    return json_in(path.read_bytes()) if path and path.is_file() else None


@functools.cache
def released() -> Mapping[str, tuple[str, ...]] | None:
    """The tags of released weights of every architecture that has some; None where the table cannot be read."""
    folder = _folder()
    try:
        tree = ast.parse((folder / "pretrained.py").read_text(encoding="utf-8")) if folder else None
        return None if tree is None else _read_table(tree)
    except (OSError, ValueError, SyntaxError, KeyError):
        return None


def _read_table(tree: ast.Module) -> dict[str, tuple[str, ...]]:
    """Read `_PRETRAINED` of open_clip's `pretrained.py`: a dict of names and of calls `dict(tag=config(...))`.

    Raises:
        ValueError, KeyError: the table is written in another way.
    """
    values = {
        statement.targets[0].id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    table = values["_PRETRAINED"]
    if not isinstance(table, ast.Dict):
        raise ValueError("no table of weights")
    tags: dict[str, tuple[str, ...]] = {}
    quick: dict[str, tuple[str, ...]] = {}
    for key, value in zip(table.keys, table.values, strict=True):
        if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
            raise ValueError("an architecture that is no text")
        weights = _weights(values[value.id] if isinstance(value, ast.Name) else value)
        tags[key.value] = tuple(weights)
        if any(weights.values()):  # open_clip repeats these under a second name
            quick[f"{key.value}-quickgelu"] = tuple(tag for tag, quick_gelu in weights.items() if quick_gelu)
    return tags | quick


def _weights(table: ast.expr) -> dict[str, bool]:
    """The tags of one architecture, each with whether it asks for quick-GELU."""
    if not (isinstance(table, ast.Call) and not table.args):
        raise ValueError("weights in another form")
    tags: dict[str, bool] = {}
    for entry in table.keywords:
        if entry.arg is None or not isinstance(entry.value, ast.Call):
            raise ValueError("weights in another form")
        tags[entry.arg] = any(
            option.arg == "quick_gelu" and isinstance(option.value, ast.Constant) and option.value.value is True
            for option in entry.value.keywords
        )
    return tags


def _folder() -> Path | None:
    """Where open_clip lies; `find_spec` does not run it."""
    package = importlib.util.find_spec("open_clip")
    return Path(package.origin).parent if package is not None and package.origin is not None else None


def installed(package: str) -> bool:
    """Whether a package can be imported here; it is not."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module that a test or a program has put in its place
        return package in sys.modules


def _version() -> str:
    try:
        return importlib.metadata.version("open_clip_torch")
    except importlib.metadata.PackageNotFoundError:
        return "here"
