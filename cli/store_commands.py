"""The commands that look at, check or derive from a label store; the same rules as in `commands`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teachonce.cli import options, places, settings
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def inspect(
    labels: places.LabelsArgument,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Show what a label store holds: rows, bytes, teacher, statistics, a few rows in words."""

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import inspect as stage

        return stage.inspect(stage.InspectRequest(labels=labels), output)

    return job("inspect", json, quiet, run_stage)


def verify(
    labels: places.LabelsArgument,
    repair: options.Repair = False,
    teacher: options.VerifyTeacher = None,
    sample: options.VerifySample = None,
    root: places.Root = None,
    seed: options.VerifySeed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Read every chunk of a label store back and compare it with its commit record.

    With --teacher the model runs again on random rows and is compared with what is stored. Exit code 4 and a list of
    what differs if anything does.
    """

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import verify as stage

        request = stage.VerifyRequest(
            labels=labels, repair=repair, teacher=teacher, sample=sample, seed=seed, root=root
        )
        return stage.verify(request, output)

    return job("verify", json, quiet, run_stage)


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


def merge(
    stores: places.MergeArgument,
    out: places.LabelsOption,
    weights: options.Weights = None,
    top_k: options.TopK = None,
    force_unlock: options.ForceUnlock = False,
    set_: options.MergeSet = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Merge several teachers of the same images: the mean of their calibrated probabilities.

    Every store needs embeddings. The same command continues a store that is not complete.
    """
    shares = options.listed_numbers(weights, "--weights")
    how = settings.settings(settings.MergeSettings, set_ or ())

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import merge as stage

        request = stage.MergeRequest(
            parents=tuple(stores),
            labels=out,
            weights=shares,
            top_k=top_k,
            calibrate=how.calibrate,
            threads=how.threads,
            force_unlock=force_unlock,
        )
        return stage.merge(request, output)

    return job("merge", json, quiet, run_stage)


def subset(
    labels: places.LabelsArgument,
    out: options.SubsetOut,
    shots: options.Shots = None,
    seed: options.SubsetSeed = 0,
    top_k: options.SubsetTopK = None,
    classes: options.SampleClasses = None,
    all_names: options.AllNames = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Write down which samples of a label store a run uses: few shots a class, some classes, fewer of the top k.

    The store stays as it is. Shots nest: with one seed, 1 shot is part of 2 shots.
    """

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import subset as stage

        request = stage.SubsetRequest(labels=labels, out=out, shots=shots, seed=seed, top_k=top_k, classes=classes,
                                      all_names=all_names)  # fmt: skip
        return stage.subset(request, output)

    return job("subset", json, quiet, run_stage)


def cache(
    action: options.ActionArgument,
    labels: places.CacheLabels = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """List or clear the working sets beside a label store, or the user's own cache; all of it is made again on demand.

    What a running process uses is left alone.
    """
    todo = options.cache_action(action)

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import cache as stage

        return stage.cache(stage.CacheRequest(action=todo, labels=labels), output)

    return job("cache", json, quiet, run_stage)
