"""Write docs/models.md out of the list of models that ships with the package; with --survey, make that list anew.

`make models` does both: it builds every architecture of open_clip that has released weights on the meta device, which
takes no memory and some minutes, and asks the towers' own checks what can carry prompts. The page needs neither torch
nor open_clip.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from teachonce.core.progress import Silent
from teachonce.models.catalogue import FILE
from teachonce.stages.models import Family, ModelsRequest, models

PAGE = Path(__file__).with_name("models.md")
# In the order of the page. A model is of the first family whose part its name holds.
FAMILIES = {
    "SigLIP2": "siglip2",
    "NLLB": "nllb",
    "SigLIP": "siglip",
    "CLIPA": "clipa",
    "MetaCLIP2": "worldwide",
    "CoCa": "coca",
    "RoBERTa": "roberta",
    "MobileCLIP2": "mobileclip2",
    "MobileCLIP": "mobileclip",
    "EVA": "eva0",
    "PE-Core": "pe-core",
    "ViTamin": "vitamin",
    "ConvNeXt": "convnext",
    "ResNet": "rn",
    "CLIP": "vit-",
}
ORDER = ("CLIP", *(family for family in FAMILIES if family != "CLIP"))
WIDTH_OF_TEXT = 64  # of the stand-in for a text tower that is left out


def family_of(name: str) -> str:
    """The family of an architecture.

    Raises:
        ValueError: no family has a part of that name; FAMILIES needs another one.
    """
    for family, part in FAMILIES.items():
        if part in name.lower():
            return family
    raise ValueError(f"{name} is of no family: add one to FAMILIES")


def built(name: str) -> Any:
    """An architecture on the meta device, with the model's own towers but without weights.

    The configuration of a text tower of transformers lies on a hub: an empty module of its class stands in for it.
    """
    import open_clip
    import torch
    from open_clip.hf_model import HFTextEncoder

    config = deepcopy(open_clip.get_model_config(name))
    foreign = "hf_model_name" in config["text_cfg"]
    if foreign:
        config["text_cfg"] = {"width": WIDTH_OF_TEXT, "heads": 1, "layers": 1}
    custom = config.pop("custom_text", False) or foreign
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    with torch.device("meta"):
        model = kind(**config)
    if foreign:
        model.text = HFTextEncoder.__new__(HFTextEncoder)
        torch.nn.Module.__init__(model.text)
    return model.eval()


def not_a_teacher(model: Any) -> str | None:
    """Why a model on the meta device gives no features of one width for images and texts; None: it gives them."""
    import torch

    size = model.visual.image_size
    pixels = torch.zeros(1, 3, *(size if isinstance(size, (tuple, list)) else (size, size)), device="meta")
    with torch.inference_mode():
        try:
            width = model.encode_image(pixels).shape[-1]
            if list(model.text.children() if hasattr(model, "text") else model.children()):  # no stand-in
                tokens = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
                if model.encode_text(tokens).shape[-1] != width:
                    return "image and text features differ in width"
        except (RuntimeError, ValueError, TypeError, AttributeError) as problem:
            return f"it cannot run: {type(problem).__name__}: {problem}"
    return None


def surveyed(name: str, tags: list[str]) -> dict[str, Any]:
    """What an architecture can be: its row of the list."""
    import open_clip

    from teachonce.towers.image_tower import image_obstacle
    from teachonce.towers.text_tower import text_obstacle

    model = built(name)
    text = open_clip.get_model_config(name)["text_cfg"]
    return {
        "name": name,
        "family": family_of(name),
        "weights": tags,
        "needs": "hf" if text.get("hf_tokenizer_name") or text.get("hf_model_name") else "",
        "teacher": not_a_teacher(model),
        "text_prompts": text_obstacle(model),
        "image_prompts": image_obstacle(model),
    }


def released() -> dict[str, list[str]]:
    """Every architecture with released weights, and their tags, in the order of the list."""
    import open_clip

    tags: dict[str, list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(name, []).append(tag)
    return dict(sorted(tags.items(), key=lambda item: (ORDER.index(family_of(item[0])), item[0].lower(), item[0])))


def survey() -> str:
    """Build every architecture; returns the list as the text of its file, a line an architecture."""
    rows = []
    for name, tags in released().items():
        rows.append(json.dumps(surveyed(name, tags)))
        sys.stderr.write(f"{name}\n")
    versions = {"open_clip": "open_clip_torch", "timm": "timm"}
    head = "".join(f' "{key}": "{importlib.metadata.version(package)}",\n' for key, package in versions.items())
    return "{\n" + head + ' "architectures": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"


def page() -> str:
    """The page as text, from the shipped list."""
    result = models(ModelsRequest(), Silent())
    parts = [
        "<!-- Made by `make models` from open_clip's architectures: change docs/make_models.py, not this page. -->",
        "# Models",
        "\n".join(
            [
                f"open_clip {result.open_clip} releases {result.total.models} models, pairs of an architecture and "
                "its weights.",
                f"{result.total.teachers} of them can teach, {result.total.text_prompts} can carry text prompts and "
                f"{result.total.image_prompts} image prompts.",
                "`teachonce models` prints this list, `teachonce models siglip` a part of it, `--json` gives it to a "
                "program; none of the three needs a network.",
                "A model that is no student can still be a teacher, and features of it can be stored and evaluated.",
            ]
        ),
        "A model that needs `hf` is loaded with the package transformers: `pip install 'teachonce[hf]'`.",
        "The list comes from building every architecture and from asking the towers' own checks "
        f"(with timm {result.timm}).\nIt says nothing of how good a model is.",
        "## By family",
        "\n".join(_table(("family", "models", "teachers", "text prompts", "image prompts", "needs"), _counts(result))),
        "## Why a family is refused",
        "\n".join(_table(("family", "what stands in the way"), _reasons(result.families))),
        "## Every architecture",
        "\n".join(
            _table(("architecture", "weights", "teacher", "text prompts", "image prompts", "needs"), _rows(result))
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _counts(result: Any) -> Iterator[tuple[str, ...]]:
    for family in (*result.families, result.total):
        numbers = (family.models, family.teachers, family.text_prompts, family.image_prompts)
        yield (family.family, *map(str, numbers), family.needs)


def _reasons(families: tuple[Family, ...]) -> Iterator[tuple[str, ...]]:
    for family in families:
        for reason in family.refused:
            yield (family.family, reason)


def _rows(result: Any) -> Iterator[tuple[str, ...]]:
    by_name: dict[str, list[Any]] = {}
    for listed in result.models:
        by_name.setdefault(listed.model.partition("/")[0], []).append(listed)
    for name, releases in by_name.items():
        one, tags = releases[0], ", ".join(f"`{listed.model.partition('/')[2]}`" for listed in releases)
        uses = ("yes" if can else "no" for can in (one.teacher, one.text_prompts, one.image_prompts))
        yield (f"`{name}`", tags, *uses, one.needs)


if __name__ == "__main__":
    if sys.argv[1:] == ["--survey"]:
        FILE.write_text(survey(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
