"""train with the teacher as the student: its stored embeddings are its features, so that no image is read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import train_runs
import worlds
from worlds import World

from teachonce.core.progress import Silent
from teachonce.errors import DataError
from teachonce.stages.relabel import RelabelRequest, relabel


def test_the_teachers_embeddings_are_its_features(world: World, teacher: str, tmp_path: Path) -> None:
    """The same bits as from features that `teach` writes; embeddings as targets go beside them; then it relabels."""
    worlds.teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5, embeddings="float16")
    worlds.teach_inline(world, tmp_path / "b.zarr", teacher, students=(teacher,), top_k=5, embeddings="float16")
    with worlds.inline_tasks():
        for name in ("a", "b"):
            train_runs.run(tmp_path / f"{name}.zarr", teacher, tmp_path / name, "steps=4")
        train_runs.run(tmp_path / "a.zarr", teacher, tmp_path / "c", "steps=2", "targets=embedding")
        relabel(
            RelabelRequest(parent=tmp_path / "a.zarr", labels=tmp_path / "new.zarr", prompts=tmp_path / "a", threads=1),
            Silent(),
        )
    prompts = [(tmp_path / name / "prompts.safetensors").read_bytes() for name in ("a", "b")]
    assert prompts[0] == prompts[1]


@pytest.mark.slow
def test_int8_embeddings_are_no_features(world: World, teacher: str, tmp_path: Path) -> None:
    """They are coarser than what `teach` writes of a student: refused, with what to do."""
    worlds.teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5, embeddings="int8")
    with worlds.inline_tasks(), pytest.raises(DataError, match="holds no image features of this student"):
        train_runs.run(tmp_path / "a.zarr", teacher, tmp_path / "run", "steps=4")
