"""What the site does with pages that are also read in the checkout: links out of docs/, and names of files at code.

MkDocs calls `on_page_markdown` for each page before it renders it. In the checkout a link may lead out of docs/, to a
config or a source file. The site holds pages only, so such a link becomes the path as text. A path that is not in the
tree is a warning, and `mkdocs build --strict` fails.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOG = logging.getLogger("mkdocs.hooks.site_hooks")
CODE = re.compile(r"^(?:```[\s\S]*?^```|(?: {4}[^\n]*\n)+)|`[^`\n]*`", re.MULTILINE)
OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]*)(?:#[^)\s]*)?\)")
NAMED_FENCE = re.compile(r"^(```\w+) \S+$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, **given: Any) -> str:
    """The page as it is rendered: no link leads out of docs/, and fences name their language only.

    Args:
        page: of MkDocs; `page.file.src_uri` is its path below docs/.
    """
    source = page.file.src_uri
    parts, begin = [], 0
    for code in CODE.finditer(markdown):
        parts += [_without_outside(markdown[begin : code.start()], source), code[0]]
        begin = code.end()
    parts.append(_without_outside(markdown[begin:], source))
    return NAMED_FENCE.sub(r"\1", "".join(parts))


def _without_outside(text: str, source: str) -> str:
    return OUTSIDE.sub(lambda link: _path_as_text(link[1], link[2], source), text)


def _path_as_text(words: str, address: str, source: str) -> str:
    target = (ROOT / "docs" / source).parent.joinpath(address).resolve()
    if not target.is_relative_to(ROOT) or not target.exists():
        LOG.warning("Doc file '%s' contains a link '%s', but there is no such path in the project.", source, address)
    path = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else address
    return words if path in words else f"{words} (`{path}`)"
