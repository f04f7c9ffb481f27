"""The command `relabel`: new soft labels from stored embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.cli import options, places, settings
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def relabel(
    labels: places.LabelsArgument,
    out: places.LabelsOption,
    vocabulary: options.Vocabulary = None,
    template: options.NewTemplates = None,
    top_k: options.TopK = None,
    temperatures: options.Temperatures = None,
    classes: options.ClassFile = None,
    teacher: options.RelabelTeacher = None,
    root: places.VocabularyRoot = None,
    force_unlock: options.ForceUnlock = False,
    set_: options.RelabelSet = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Make new soft labels from stored image embeddings: other names, templates, k, temperatures or classes.

    No image is read. The same command continues a store that is not complete.
    """
    taus = options.listed_numbers(temperatures, "--temperatures")
    how = settings.settings(settings.RelabelSettings, set_ or ())

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import relabel as stage

        request = stage.RelabelRequest(
            parent=labels,
            labels=out,
            vocabulary=vocabulary,
            templates=tuple(template) if template else None,
            top_k=top_k,
            temperatures=taus,
            classes=classes,
            teacher=teacher,
            root=root,
            threads=how.threads,
            force_unlock=force_unlock,
        )
        return stage.relabel(request, output)

    return job("relabel", json, quiet, run_stage)
