"""The command `index`: what lies on disk against what the manifest says."""

from __future__ import annotations

from typing import Annotated

import typer

from teachonce.cli import options
from teachonce.cli.jobs import Job, job
from teachonce.cli.views.index import by_split
from teachonce.stages import index as stage

IndexSplit = Annotated[
    str | None, typer.Option("--split", metavar="S", help="Only this split of the manifest.", show_default=False)
]
Digests = Annotated[
    bool, typer.Option("--digests", help="Also read released files whole and compare published digests.")
]


def index(
    manifest: options.ManifestArgument = None,
    manifest_option: options.ManifestOption = None,
    root: options.Root = None,
    split: IndexSplit = None,
    digests: Digests = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Compare the data on disk with its manifest: every fault at once, before a GPU hour is spent.

    Whatever looks like an image and is none of the samples is counted by reason.

    Exit 3 when anything is missing, damaged or too much.
    """
    source = options.one_manifest(manifest, manifest_option, "index")

    request = stage.IndexRequest(manifest=source, root=root, split=split, digests=digests)
    return job("index", json, quiet, lambda output: stage.index(request, output), by_split)
