"""The commands: each turns its options into one stage request and hands back the job that runs it.

Nothing runs while the command line is parsed: a stage, and with it torch and zarr, is imported inside the job only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachonce.cli import options, places, settings
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job
from teachonce.config import TrainConfig, load_train_config
from teachonce.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from teachonce.stages.teach import TeachRequest

DEMO_FOLDER = Path("teachonce-demo")
TEMPLATE = "a photo of a {}."


def teach(
    labels: places.LabelsOption,
    manifest: options.ManifestArgument = None,
    manifest_option: options.ManifestOption = None,
    root: places.Root = None,
    split: options.Split = "train",
    teacher: options.Teacher = None,
    student: options.TeachStudents = None,
    vocabulary: options.Vocabulary = None,
    template: options.Templates = None,
    top_k: options.TopK = None,
    views: options.Views = 1,
    shots: options.TeachShots = None,
    embeddings: options.Embeddings = None,
    workers: options.TeachWorkers = None,
    scheduler: options.Scheduler = None,
    cluster: options.Cluster = None,
    chunk_rows: options.ChunkRows = None,
    retry_failed: options.RetryFailed = False,
    force_unlock: options.ForceUnlock = False,
    dry_run_io: options.DryRunIo = False,
    dummy_images: options.DummyImages = False,
    set_: options.TeachSet = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Run the teacher once over the images and keep its soft labels in a Zarr store.

    The same command continues a store that is not complete; rows that are there are never computed again.
    """
    source = options.one_manifest(manifest, manifest_option, "teach")
    how = settings.settings(settings.TeachSettings, set_ or ())
    if dry_run_io and dummy_images:
        raise UsageError("--dry-run-io and --dummy-images exclude each other: one runs no model, the other no image")

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import teach as stage

        request = teach_request(
            how, views, template, student, manifest=source, root=root, split=split, labels=labels, teacher=teacher,
            vocabulary=vocabulary, top_k=top_k, embeddings=embeddings, shots=shots, chunk_rows=chunk_rows,
            scheduler=scheduler, cluster=cluster, workers=workers, retry_failed=retry_failed, force_unlock=force_unlock,
        )  # fmt: skip
        if not (dry_run_io or dummy_images):
            return stage.teach(request, output)
        from teachonce.stages import rehearse

        return rehearse.rehearse_half(request, "images" if dry_run_io else "models", how.rehearsal_seconds, output)

    return job("teach", json, quiet, run_stage)


def teach_request(
    how: settings.TeachSettings, views: int, template: list[str] | None, student: list[str] | None, **given: Any
) -> TeachRequest:
    """What `teach` and `plan` are asked: their options, with the settings of `--set` put in."""
    from teachonce.stages.teach import TeachRequest
    from teachonce.views import ViewPolicy

    return TeachRequest(
        **given, students=tuple(student or ()), templates=tuple(template or (TEMPLATE,)), seed=how.seed,
        views=ViewPolicy(views=views, seed=how.seed, scale=(how.view_scale, 1.0), randaugment=how.randaugment),
        compiled=how.compile, class_tile=how.class_tile, threads=how.threads, batch_size=how.batch_size,
        precision=how.precision, max_failed_share=how.max_failed_share,
    )  # fmt: skip


def train(
    labels: places.TrainLabels = None,
    student: options.TrainStudent = None,
    out: options.TrainOut = None,
    structure: options.Structure = None,
    supervision: options.Supervision = None,
    config: options.ConfigFile = None,
    set_: options.TrainSet = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    select: options.TrainSelection = None,
    manifest: options.TrainManifest = None,
    split: options.TrainSplit = None,
    vocabulary: options.TrainVocabulary = None,
    root: places.TrainRoot = None,
    init: options.Init = None,
    log: options.Log = None,
    resume: options.Resume = False,
    print_config: options.PrintConfig = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Learn the prompts of a frozen student from a label store; no teacher, and no images for text prompts.

    LABELS.zarr, --student and --out are required, except with --print-config. --manifest, --split, --vocabulary and
    --root say what the store must belong to; --root is also where prompts in the image tower find their images.
    """
    ours, overrides = settings.split_overrides(settings.TrainSettings, set_ or ())
    how = settings.settings(settings.TrainSettings, ours)
    flags = {"structure": structure, "supervision": supervision, "seed": seed, "steps": steps}
    overrides += [f"{key}={value}" for key, value in flags.items() if value is not None]
    resolved = load_train_config(config, overrides)
    if print_config:
        return Job(command="train", json=json, quiet=quiet, work=lambda output: _print_config(resolved, output))
    store = options.required(labels, "argument 'LABELS.zarr'", "train")
    model = options.required(student, "option '--student'", "train")
    run = options.required(out, "option '--out'", "train")

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import train as stage

        request = stage.TrainRequest(
            labels=store, student=model, out=run, config=resolved, resume=resume, threads=how.threads,
            selection=select, manifest=manifest, split=split, vocabulary=vocabulary, root=root, init=init,
            log=() if log is None else (log,),
        )  # fmt: skip
        return stage.train(request, output)

    return job("train", json, quiet, run_stage)


def _print_config(config: TrainConfig, output: Output) -> int:
    import tomli_w

    if output.json:
        output.document({"config": config.to_dict()})
    else:
        output.text(tomli_w.dumps(config.to_dict()))
    return 0


def evaluate(
    student: options.Student,
    manifest: options.EvaluateManifest = None,
    run: options.RunArgument = None,
    root: places.Root = None,
    protocol: options.EvaluateProtocol = None,
    split: options.EvaluateSplit = None,
    vocabulary: options.Vocabulary = None,
    classes: options.EvaluateClasses = None,
    among: options.EvaluateAmong = None,
    without: options.Without = None,
    template: options.EvaluateTemplate = None,
    wise: options.Wise = 1.0,
    per_class: options.PerClass = None,
    credits: options.Credits = None,
    skip_missing: options.SkipMissing = False,
    set_: options.EvaluateSet = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Score zero-shot classification: the prompts of RUN, or the hand-written template without one.

    On one data set, --manifest, or on those of a --protocol, which are one table; sets that are not there are listed,
    and the exit code is 5.
    """
    how = settings.settings(settings.EvaluateSettings, set_ or ())
    common: dict[str, Any] = {
        "run": run, "student": student, "root": root, "vocabulary": vocabulary, "classes": classes,
        "without": without, "template": template, "wise": wise, "per_class": per_class, "credits": credits,
        "cache": how.cache, "batch_size": how.batch_size, "threads": how.threads,
    }  # fmt: skip
    source = _one_set(manifest, skip_missing) if protocol is None else ""
    if protocol is not None and among is not None:
        raise UsageError("--among is what a protocol says of each of its sets", "leave it out")

    def run_stage(output: Output) -> DataclassInstance:
        if protocol is not None:
            from teachonce.stages import evaluate_protocol as protocols

            asked = protocols.ProtocolRequest(
                **common, protocol=protocol, manifest=manifest, split=split, skip_missing=skip_missing
            )
            return protocols.evaluate_protocol(asked, output)
        from teachonce.stages import evaluate as stage

        request = stage.EvaluateRequest(**common, manifest=source, split=split or "val", among=among or "classes")
        return stage.evaluate(request, output)

    return job("evaluate", json, quiet, run_stage)


def _one_set(manifest: str | None, skip_missing: bool) -> str:
    """The manifest of an evaluation without a protocol."""
    if skip_missing:
        raise UsageError("--skip-missing is about the sets of a --protocol", "teachonce evaluate --help")
    return options.required(manifest, "option '--manifest' (or '--protocol')", "evaluate")


def demo(
    out: options.DemoOut = DEMO_FOLDER,
    seeds: options.DemoSeeds = 1,
    workers: options.Workers = 1,
    train_models: options.DemoTrainModels = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> Job:
    """Show all of it in minutes: offline, on a CPU, with images and models that ship with the package."""

    def run_stage(output: Output) -> DataclassInstance:
        from teachonce.stages import demo as stage

        request = stage.DemoRequest(out=out, seeds=seeds, workers=workers, train_models=train_models)
        return stage.demo(request, output)

    return job("demo", json, quiet, run_stage)
