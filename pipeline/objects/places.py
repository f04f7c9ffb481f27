"""Opening a place for the verbs of the seam: a folder of this machine, or a URL."""

from __future__ import annotations

import re
from pathlib import Path

from teachonce.objects.bucket import BucketObjects
from teachonce.objects.folder import FolderObjects
from teachonce.objects.seam import Objects

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]+)/?(.*)", re.DOTALL)


def open_objects(place: Path) -> Objects:
    """The verbs for what lies below a place; a path of `location`'s kind for a URL.

    Nothing is asked of a server before the first verb.
    """
    match = _URL.fullmatch(str(place))
    return FolderObjects(place) if match is None else BucketObjects(match[1], match[2], match[3])
