"""The command `train`: its options and `--set` become one training configuration and one request."""

from __future__ import annotations

from teachonce.cli import options, places, settings
from teachonce.cli.console import Output
from teachonce.cli.jobs import Job, job
from teachonce.stages import train as stage
from teachonce.training.config import TrainConfig
from teachonce.training.config_file import config_text, load_train_config


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
    request = stage.TrainRequest(
        labels=options.required(labels, "argument 'LABELS.zarr'", "train"),
        student=options.required(student, "option '--student'", "train"),
        out=options.required(out, "option '--out'", "train"),
        config=resolved,
        resume=resume,
        threads=how.threads,
        selection=select,
        manifest=manifest,
        split=split,
        vocabulary=vocabulary,
        root=root,
        init=init,
        log=() if log is None else (log,),
    )
    return job("train", json, quiet, lambda output: stage.train(request, output))


def _print_config(config: TrainConfig, output: Output) -> int:
    if output.json:
        output.document({"config": config.to_dict()})
    else:
        output.text(config_text(config))
    return 0
