"""`plan` says before a run what it takes, writes nothing, and is held against the outcome; rehearsals of halves."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import worlds
from worlds import CHUNK_ROWS, CHUNKS, PHOTOS, World, files_of, request_for, teach_inline

from teachonce.core.progress import Silent
from teachonce.data.view_policy import ViewPolicy
from teachonce.errors import DataError, FingerprintError, UsageError
from teachonce.labels.format import new_layout
from teachonce.labels.size import bytes_per_row
from teachonce.stages.plan import PlanRequest, PlanResult, compare, plan, probe
from teachonce.stages.plan import figures as plan_figures
from teachonce.stages.plan.idle import idle_advice
from teachonce.stages.teach import RehearseResult, rehearse_half


def planned(world: World, labels: Path, teacher: str | None, **options: Any) -> PlanResult:
    """A plan with a probe of a second."""
    of_plan = {name: options.pop(name) for name in ("rate", "out") if name in options}
    request = request_for(world, labels, teacher, **options)
    return plan(PlanRequest(teach=request, seconds=1.0, **of_plan), Silent())


def figures(result: PlanResult) -> dict[str, tuple[float, float]]:
    """Low and high by name."""
    return {e.what: (e.low, e.high) for e in result.estimates}


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below, with size and time."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files_of(folder)}


def test_a_plan_holds_the_outcome_and_writes_nothing(
    world: World, teacher: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and chunks to the last one; bytes about right, in a range that says something; no file anywhere."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    labels, before = tmp_path / "a.zarr", everything(world.root)
    options: dict[str, Any] = {"students": (student,), "top_k": 5, "embeddings": "int8"}
    result = planned(world, labels, teacher, **options)
    assert (
        everything(world.root) == before and sorted(os.listdir(tmp_path)) == ["tmp"] and not list(temporary.iterdir())
    )
    assert (result.samples, result.rows, result.chunks, result.chunks_there) == (PHOTOS, PHOTOS, CHUNKS, 0)
    assert result.fits and result.exit_code == 0 and result.advice == ()
    estimates = figures(result)
    done = teach_inline(world, labels, teacher, **options)
    for part in ("labels", "features", "embeddings"):
        low, high = estimates[f"bytes of {part}"]
        assert low * 0.7 <= PHOTOS * done.bytes_per_row[part] <= high * 1.6, (part, low, high, done.bytes_per_row[part])
        assert high < 1.5 * low, "a range that says something"
    for low, high in estimates.values():
        assert 0 <= low <= high
    assert estimates["seconds of chunks"][0] > 0 and "forward" in result.bottleneck


def test_a_store_that_is_there_is_not_planned_again(
    world: World, teacher: str, student: str, finished: Path, tmp_path: Path
) -> None:
    """All chunks there: nothing left. One lost: one chunk's rows. Another student: all of them. Another k: refused."""
    store = worlds.copy_store(finished, tmp_path)
    full = planned(world, store, teacher, students=(student,), top_k=5)
    assert (full.chunks_there, figures(full)["seconds of chunks"]) == (CHUNKS, (0.0, 0.0))
    from teachonce.labels.store import LabelStore

    LabelStore.open(store, writable=True).drop("labels", 2)
    part = planned(world, store, teacher, students=(student,), top_k=5)
    assert part.chunks_there == CHUNKS - 1
    low, high = figures(part)["bytes of labels"]
    assert 0 < low < high < 20 * CHUNK_ROWS * bytes_per_row(LabelStore.open(store))["labels"]
    other = planned(world, store, teacher, students=(teacher,), top_k=5)
    assert other.chunks_there == 0
    with pytest.raises(FingerprintError, match="top_k"):
        planned(world, store, teacher, top_k=4)


def test_views_and_shots_are_counted(world: World, teacher: str, tmp_path: Path) -> None:
    """Three views of two shots of seven classes."""
    result = planned(world, tmp_path / "a.zarr", teacher, views=ViewPolicy(views=3), shots=2, chunk_rows=12)
    assert (result.samples, result.rows, result.chunks) == (14, 42, 4)
    assert not (tmp_path / "a.zarr.shots.json").exists()


def test_a_stated_rate_needs_no_model(
    world: World, teacher: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is loaded; time follows from the rate; widths come from the models' configuration files."""
    monkeypatch.setattr(probe, "load_models", lambda *_: pytest.fail("a model was loaded"))
    result = planned(world, tmp_path / "a.zarr", teacher, students=(student,), rate=7.0, embeddings="float16", top_k=5)
    assert figures(result)["seconds of chunks"] == (PHOTOS / 7, PHOTOS / 7)
    assert figures(result)["bytes of embeddings"][1] == pytest.approx(PHOTOS * 2.1 * 16)
    done = teach_inline(world, tmp_path / "a.zarr", teacher, students=(student,), embeddings="float16", top_k=5)
    assert figures(result)["bytes of features"][1] * 2 > PHOTOS * done.bytes_per_row["features"]
    for rate in (0.0, -1.0):
        with pytest.raises(UsageError, match="above 0"):
            planned(world, tmp_path / "b.zarr", teacher, rate=rate)


def test_what_does_not_fit_is_said_with_the_option_that_helps(
    world: World, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk and little memory: exit 6, and what to change."""
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=100))
    result = planned(world, tmp_path / "a.zarr", teacher, rate=7.0, embeddings="float16", views=ViewPolicy(views=2))
    assert not result.fits and result.exit_code == 6
    assert "`embeddings` int8" in result.advice[0] and "fewer `views`" in result.advice[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    monkeypatch.setattr(plan_figures, "_memory_free", lambda probe: 10**6)
    result = planned(world, tmp_path / "a.zarr", teacher, workers=4)
    assert result.exit_code == 6 and "`workers`" in result.advice[0] and "class_tile" in result.advice[0]


@pytest.mark.parametrize(
    ("text", "workers", "said"),
    [
        ('kind = "local"\nworkers = 3', 3, None),
        ('kind = "local"\nadaptive = {maximum = 2}', 2, None),
        ('kind = "cuda"\ndevices = [0, 1]', 2, None),
        ('kind = "cuda"', 1, "one GPU"),
        ('kind = "slurm"\ncores = 4\nmemory = "8 GB"\nwalltime = "01:00:00"\njobs = 5', 5, "a job's cores"),
    ],
)
def test_workers_of_a_described_cluster(
    text: str, workers: int, said: str | None, world: World, teacher: str, tmp_path: Path
) -> None:
    """As many as the file says; what is not known is said."""
    (tmp_path / "c.toml").write_text(text)
    result = planned(world, tmp_path / "a.zarr", teacher, rate=7.0, cluster=tmp_path / "c.toml")
    advice = [sentence for sentence in result.advice if "chunks are few" not in sentence]
    assert result.workers == workers and (said is None) == (advice == [])
    assert said is None or said in advice[0]


def test_a_plan_says_what_would_be_idle(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """Five chunks for two workers; in a store that is there, only the two chunks that are left count."""
    result = planned(world, tmp_path / "a.zarr", teacher, rate=7.0, workers=2)
    assert result.fits and "5 chunks are few for 2 workers: up to 29% of their time" in result.advice[0]
    assert planned(world, tmp_path / "a.zarr", teacher, rate=7.0, workers=1).advice == ()
    assert planned(world, finished, teacher, rate=7.0, workers=2).advice == ()


def test_smaller_chunks_are_proposed_where_workers_would_be_idle() -> None:
    """8 chunks for each worker, in rows that hold whole images; none too small; nothing where chunks suffice."""
    layout = new_layout(131_072, 100, 5, (1.0,), 16_384)
    (said,) = idle_advice(layout, 8, 131_072, 16, is_new=True)
    assert "up to 67% of their time" in said and "`chunk_rows` 1024 makes 128 chunks" in said
    assert "`workers`: 2 would be as busy" in idle_advice(layout, 8, 131_072, 16, is_new=False)[0]
    assert idle_advice(layout, 8, 131_072, 2, is_new=True) == idle_advice(layout, 0, 0, 9, is_new=False) == []
    three = new_layout(3 * 40_000, 100, 5, (1.0,), 16_383, views=3)
    assert "`chunk_rows` 1794 makes 67 chunks" in idle_advice(three, 8, 120_000, 8, is_new=True)[0]
    assert "`workers`: 1 " in idle_advice(new_layout(2_048, 9, 5, (1.0,), 512), 4, 2_048, 64, is_new=False)[0]


@pytest.mark.parametrize(("chunks", "workers"), [(8, 16), (5, 2), (30, 8), (31, 8), (200, 64)])
def test_no_more_is_idle_than_a_plan_says(chunks: int, workers: int) -> None:
    """Chunks of equal length, in rounds: the last round may have one chunk only."""
    rounds = -(-chunks // workers)
    assert 1 - chunks / (rounds * workers) <= workers / (chunks + workers)


def test_workers_of_a_scheduler_are_not_known(world: World, teacher: str, tmp_path: Path) -> None:
    """Nobody is asked: the plan is for one."""
    result = planned(world, tmp_path / "a.zarr", teacher, rate=7.0, scheduler="tcp://127.0.0.1:9")
    assert result.workers == 1 and "divide" in result.advice[0]


def test_a_plan_is_compared_with_its_outcome(world: World, teacher: str, finished: Path, tmp_path: Path) -> None:
    """Rows, chunks, bytes by part, seconds, each with its range; a file that is no plan is refused."""
    file = tmp_path / "plan.json"
    result = planned(world, tmp_path / "a.zarr", teacher, top_k=5, out=file)
    assert json.loads(file.read_text())["estimates"] == [dataclasses.asdict(e) for e in result.estimates]
    teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5)
    compared = compare(file, tmp_path / "a.zarr", Silent())
    by_figure = {c.what: c for c in compared.compared}
    assert compared.complete and by_figure["rows"].inside and by_figure["chunks"].inside
    assert {
        "rows",
        "chunks",
        "bytes",
        "bytes of labels",
        "bytes of index",
        "seconds of chunks",
        "rows a second",
    } <= set(by_figure)
    for c in compared.compared:
        assert c.inside == (c.low <= c.outcome <= c.high) and c.outcome > 0
    notes = worlds.Notes()
    other = compare(file, finished, notes)
    assert {c.what: c for c in other.compared}["rows"].inside, "the same photos"
    assert len(notes.lines) == 1 and "students/" in notes.lines[0] and notes.lines[0].endswith(" not planned")
    for text in ("{}", "[1]", "no", json.dumps(json.loads(file.read_text()) | {"schema": 9})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match="no plan"):
            compare(tmp_path / "bad.json", finished, Silent())


def test_what_was_taught_otherwise_is_said_before_the_figures(
    world: World, teacher: str, student: str, tmp_path: Path
) -> None:
    """Every option that differs, with both values; another teacher or split is another job. The same: no word."""
    file, notes = tmp_path / "plan.json", worlds.Notes()
    planned(world, tmp_path / "a.zarr", teacher, top_k=5, shots=2, out=file)
    teach_inline(world, tmp_path / "a.zarr", teacher, top_k=5, shots=2)
    compare(file, tmp_path / "a.zarr", notes)
    assert notes.lines == []
    teach_inline(world, tmp_path / "b.zarr", teacher, top_k=4, shots=3, templates=("a {}",))
    compare(file, tmp_path / "b.zarr", notes)
    (said,) = notes.lines
    for words in (
        "rows 14 planned, 21 taught",
        '{"shots": 2, "seed": 0} planned, {"shots": 3, "seed": 0} taught',
        "top_k 5 planned, 4 taught",
        'templates ["a photo of a {}."] planned, ["a {}"] taught',
    ):
        assert words in said
    teach_inline(world, tmp_path / "c.zarr", student, top_k=5, shots=2)
    with pytest.raises(UsageError, match="plan of another job than .*teacher_digest"):
        compare(file, tmp_path / "c.zarr", Silent())
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "job"}))
    compare(file, tmp_path / "b.zarr", notes)
    assert notes.lines[1].endswith(": rows 14 planned, 21 taught"), "a plan of an earlier version"


def test_no_more_images_are_tried_than_the_job_has(world: World, teacher: str, tmp_path: Path) -> None:
    notes = worlds.Notes()
    request = request_for(world, tmp_path / "a.zarr", teacher, shots=2)
    plan(PlanRequest(teach=request, seconds=1.0), notes)
    assert any("trying 14 images at most" in line for line in notes.lines)


def halves(
    world: World, labels: Path, half: Any, teacher: str | None, seconds: float = 1.0, **options: Any
) -> RehearseResult:
    """One half for some seconds."""
    return rehearse_half(request_for(world, labels, teacher, **options), half, seconds, Silent())


def test_images_without_a_model(world: World, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and decoding rates of real images; no model runs, nothing is written."""
    from teachonce.models.clip import LoadedClip

    real = LoadedClip.encode_images

    def grey_only(clip: LoadedClip, pixels: Any, *more: Any) -> Any:
        """A model is tried on one grey image when it is loaded."""
        assert (pixels.amax((2, 3)) == pixels.amin((2, 3))).all(), "a model ran on an image"
        return real(clip, pixels, *more)

    monkeypatch.setattr(LoadedClip, "encode_images", grey_only)
    before = everything(world.root)
    rehearsed = halves(world, tmp_path / "a.zarr", "images", teacher, seconds=4.0)  # enough on a busy machine
    assert rehearsed.images > PHOTOS and rehearsed.failed == 0, "they are gone over again"
    assert rehearsed.rates["read"] > rehearsed.rates["decode"] > 0 and "decoding" in rehearsed.bottleneck
    assert not list(tmp_path.iterdir()) and everything(world.root) == before


def test_models_without_images(
    world: World, teacher: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, top k and write rates on made-up pixels; no image is read, nothing is written."""
    from teachonce.data.reader import ImageReader

    monkeypatch.setattr(ImageReader, "read", lambda *_: pytest.fail("an image was read"))
    rehearsed = halves(world, tmp_path / "a.zarr", "models", teacher, students=(student,), views=ViewPolicy(views=2))
    assert rehearsed.images > 0 and set(rehearsed.rates) == {"forward", "top_k", "write"}
    assert min(rehearsed.rates.values()) > 0 and rehearsed.bottleneck.partition(",")[0] in rehearsed.rates
    assert not list(tmp_path.iterdir())


def test_rehearsals_check_what_teach_checks(world: World, tmp_path: Path) -> None:
    """Exit 2 for nothing to compute."""
    with pytest.raises(UsageError, match="nothing to compute"):
        halves(world, tmp_path / "a.zarr", "images", None)
