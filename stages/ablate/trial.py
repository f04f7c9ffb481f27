"""Whether the prompts of a cell and the features of the store go with the student, tried before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.errors import DataError, UsageError
from teachonce.labels.ledger import require_behaviour
from teachonce.labels.metadata import features_group
from teachonce.labels.store import LabelStore
from teachonce.recipe.config import TrainConfig
from teachonce.recipe.requirements import requirements
from teachonce.runs.cells import Cell
from teachonce.runs.needs import student_command
from teachonce.stages.ablate.stores import Stores

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip

LONGEST = 32  # names on which a cell's prompts are tried


class Trial:
    """Tries every cell's prompts on the student, each kind once."""

    def __init__(self, stores: Stores, clip: LoadedClip) -> None:
        self._stores, self._clip = stores, clip
        self._seen: dict[Any, str | None] = {}

    def start_digest(self, cell: Cell) -> str | None:
        """The digest of the prompts that the cell starts from, after they and the config were found to fit the student.

        Raises:
            TeachOnceError: they do not, or the store has no features of the student.
        """
        config, store = cell.config, self._stores.of(cell)
        if requirements(config).features:
            self._require_features(store)
        key = (config.prompts, config.loop.precision, cell.prompts, store.path)
        if key not in self._seen:
            names = sorted(store.vocabulary().names, key=len)[-LONGEST:]
            self._seen[key] = self._try(config, cell.prompts, names)
        return self._seen[key]

    def _require_features(self, store: LabelStore) -> None:
        clip = self._clip
        group = features_group(store.groups, clip.digest)
        if group is not None:
            require_behaviour(store.path, group, store.groups[group].fingerprint, clip.image_behaviour)
            return
        known = [
            str(group.fingerprint["about"].get("student"))
            for name, group in sorted(store.groups.items())
            if name.startswith("students/")
        ]
        raise DataError(
            f"{store.path} holds no image features of this student (weights {clip.digest[:16]}); it holds those of: "
            f"{', '.join(known) or 'none'}",
            hint=student_command(store, clip.spec),
        )

    def _try(self, config: TrainConfig, prompts: Path | None, names: Sequence[str]) -> str | None:
        from teachonce.models.prompt_files import load_prompts
        from teachonce.training.student import PromptedStudent

        student = PromptedStudent(config.changed(compile=False), self._clip, names)
        if prompts is None:
            return None
        loaded = load_prompts(prompts).bound_to(self._clip)
        for tower, given in (("text", loaded.text), ("image", loaded.image)):
            learner = student.learner(tower)
            if learner is not None and given is not None:
                learner.load_start(given)
            elif (learner is None) != (given is None):
                raise UsageError(
                    f"the prompts in {prompts} are of tower = '{loaded.meta.tower}', and this cell's is "
                    f"'{config.prompts.tower}'",
                    hint=f"set tower = '{loaded.meta.tower}'",
                )
        if loaded.text is not None and loaded.meta.position != config.prompts.position:
            raise UsageError(
                f"the prompts in {prompts} stand {loaded.meta.position} the name, and this cell's "
                f"{config.prompts.position}",
                hint=f"set position = '{loaded.meta.position}'",
            )
        return loaded.tensors_digest
