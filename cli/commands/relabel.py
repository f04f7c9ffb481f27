"""The command `relabel`: new soft labels from stored embeddings."""

from __future__ import annotations

from teachonce.cli import options, places, settings
from teachonce.cli.jobs import Job, job
from teachonce.stages import relabel as stage


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
    return job("relabel", json, quiet, lambda output: stage.relabel(request, output))
