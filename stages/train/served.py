"""Whether a store and a caller give what a run needs: the words for what `training.requirements` finds lacking.

It opens nothing and loads no model, so that a run is refused before anything heavy begins.
"""

from __future__ import annotations

from pathlib import Path

from teachonce.errors import DataError, TeachOnceError, UsageError
from teachonce.labels.format import EMBEDDING
from teachonce.labels.selection import Selection
from teachonce.labels.store import LabelStore
from teachonce.phrases import option, phrase, setting
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.requirements import Holdings, Lack, requirements


def holdings(store: LabelStore, selection: Selection | None = None) -> Holdings:
    """What a store holds for a run that uses a selection of it."""
    layout, top_k = store.layout, store.layout.top_k
    if selection is not None and selection.top_k is not None:
        top_k = min(top_k, selection.top_k)
    return Holdings(
        views=layout.views, top_k=top_k, temperatures=tuple(layout.temperatures), embeddings=EMBEDDING in store.groups
    )


def require_served(config: TrainConfig, store: LabelStore, held: Holdings) -> None:
    """Refuse a config that the store cannot serve.

    Args:
        held: what the store holds: less with a selection, more with what is derived from it.

    Raises:
        UsageError: fewer views than a step should have, soft labels from a store without a teacher or at a temperature
            it has no tail for, more of the teacher's best classes than a row has.
        DataError: the store keeps no embeddings of its teacher.
    """
    for lack in requirements(config).lacking(held):
        raise _refusal(lack, config, store, held)


def require_images(config: TrainConfig, root: Path | None) -> None:
    """Refuse prompts in the image tower where nobody says in which folder the images are.

    Raises:
        UsageError: the folder is missing.
    """
    if requirements(config).images and root is None:
        raise UsageError(
            f"tower = '{config.prompts.tower}' reads images in training, and " + option("root") + " is missing",
            hint=phrase("give {root} DATA, the folder that the store was taught from"),
        )


def _refusal(lack: Lack, config: TrainConfig, store: LabelStore, held: Holdings) -> TeachOnceError:
    loss = config.loss
    if lack == "views":
        return UsageError(
            f"views_per_step = {config.loop.views_per_step}: {store.path} holds {held.views} of each sample",
            hint=f"use at most {held.views}, or teach a store with more " + option("views"),
        )
    if lack == "teacher":
        return UsageError(
            f"{store.path} was made without a teacher: it has no soft labels for supervision = '{loss.supervision}'",
            hint=phrase("train with {supervision} hard, or make a store with `teachonce teach ... {teacher} MODEL`"),
        )
    if lack == "embeddings":
        return DataError(
            f"{store.path} holds no image embeddings of its teacher for targets = 'embedding'",
            hint=store.embedding_hint,
        )
    if lack == "temperature":
        return UsageError(
            f"teacher temperature = {loss.tau_teacher}: {store.path} holds the mass outside the top "
            f"{store.layout.top_k} for the temperatures {', '.join(map(str, held.temperatures))} only",
            hint=phrase(
                "use one of these, or {targets=embedding} with a store that keeps embeddings, or {tail=renormalise}, "
                "which reads no tail"
            ),
        )
    if lack == "soft_classes":
        return UsageError(
            f"tail = 'renormalise': soft labels of {store.path} have one class here, which renormalised "
            "is certain whatever the prompts: nothing would be learned from them",
            hint=phrase("use another {tail=...}, or more classes of each soft label"),
        )
    return UsageError(
        f"sampled_top = {config.candidates.sampled_top}: soft labels of {store.path} have {held.top_k} classes here",
        hint=setting("sampled_top", held.top_k) + ", or a store with a larger " + option("top_k"),
    )
