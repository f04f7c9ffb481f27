"""The work of `models`. The docstring of the package says what the stage promises."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Sequence

from teachonce.core.progress import Reporter
from teachonce.errors import UsageError, did_you_mean
from teachonce.models.catalogue import Architecture, catalogue
from teachonce.stages.models.request import Family, ListedModel, ModelsRequest, ModelsResult

ALL = "all"
USES = {"teacher": "as teacher", "text_prompts": "text", "image_prompts": "image"}
EXTRAS = {"hf": "transformers"}
"""By extra: the package whose absence tells that the extra is not installed."""


def models(request: ModelsRequest, reporter: Reporter) -> ModelsResult:
    """List the models whose name or family holds the word. The stage's `models` says what is raised."""
    known = catalogue()
    every = [listed for architecture in known.architectures for listed in _releases(architecture)]
    chosen = every if request.word is None else [listed for listed in every if _holds(listed, request.word)]
    if not chosen:
        names = sorted({name.lower() for listed in every for name in (listed.family, listed.model)})
        near = did_you_mean(str(request.word).lower(), names)
        raise UsageError(
            f"no model of open_clip {known.open_clip}, and no family, has '{request.word}' in its name"
            + (f"; {near}" if near.startswith("did") else ""),
            hint="teachonce models lists all",
        )
    _say_what_is_missing(known.open_clip, chosen, reporter)
    families = dict.fromkeys(listed.family for listed in chosen)
    return ModelsResult(
        open_clip=known.open_clip,
        timm=known.timm,
        models=tuple(chosen),
        families=tuple(count(family, [one for one in chosen if one.family == family]) for family in families),
        total=count(ALL, chosen),
    )


def count(name: str, listed: Sequence[ListedModel]) -> Family:
    """Count what the listed models can be, under a name."""
    reasons = (f"{USES[use]}: {reason}" for one in listed for use, reason in one.refused.items())
    return Family(
        family=name,
        models=len(listed),
        teachers=sum(one.teacher for one in listed),
        text_prompts=sum(one.text_prompts for one in listed),
        image_prompts=sum(one.image_prompts for one in listed),
        needs=", ".join(_distinct(one.needs for one in listed if one.needs)) if name != ALL else "",
        refused=tuple(_distinct(reasons)) if name != ALL else (),
    )


def _releases(architecture: Architecture) -> list[ListedModel]:
    refused = {use: getattr(architecture, use) for use in USES if getattr(architecture, use) is not None}
    return [
        ListedModel(
            model=f"{architecture.name}/{tag}",
            family=architecture.family,
            teacher="teacher" not in refused,
            text_prompts="text_prompts" not in refused,
            image_prompts="image_prompts" not in refused,
            needs=architecture.needs,
            refused=refused,
        )
        for tag in architecture.weights
    ]


def _holds(listed: ListedModel, word: str) -> bool:
    return word.casefold() in f"{listed.model}\n{listed.family}".casefold()


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _say_what_is_missing(listed_version: str, chosen: Sequence[ListedModel], reporter: Reporter) -> None:
    """Say whether the installed packages are other ones than the list presumes."""
    try:
        version = importlib.metadata.version("open_clip_torch")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    if version != listed_version:
        here = f"{version} is" if version else "none is"
        reporter.note(f"the list is that of open_clip {listed_version}; {here} installed here")
    for extra, package in EXTRAS.items():
        if any(one.needs == extra for one in chosen) and importlib.util.find_spec(package) is None:
            reporter.note(
                f"models that need '{extra}' cannot be loaded here yet: pip install 'teachonce[{extra}]' "
                f"(the package {package} is missing)"
            )
