"""What `models` prints for a person: a table of models, and below it the counts by family with the reasons.

It looks at no file: every word comes from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from teachonce.cli.console import Records

COLUMNS = ("model", "teacher", "text_prompts", "image_prompts", "needs")


def view(values: Mapping[str, Any]) -> RenderableType:
    """The whole answer, from the keys of its JSON document."""
    title = f"models of open_clip {values['open_clip']}"
    models = [{name: model[name] for name in COLUMNS} for model in values["models"]]
    total = {**values["total"], "refused": ""}
    families = [{**family, "refused": "\n".join(family["refused"])} for family in values["families"]]
    return Group(Records(title, models), Text(), Records("by family", [*families, total]))
