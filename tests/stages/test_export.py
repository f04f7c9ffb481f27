"""export: the folder holds what the run held, says what is recorded, and gives the recorded accuracy again."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import dassl_files
import numpy as np
import open_clip
import pytest
import torch
import worlds
from PIL import Image
from requests_of import evaluate_request
from safetensors import safe_open
from share_runs import make_run, record_accuracy
from worlds import IDS, NAMES, Notes, World

import teachonce
from teachonce.core.progress import Silent
from teachonce.core.sums import digest_of
from teachonce.errors import DataError, EnvironmentFault, FingerprintError, IncompleteError, IntegrityError, UsageError
from teachonce.models.clip import load_clip
from teachonce.models.prompt_files import LoadedPrompts
from teachonce.recipe.config_file import load_train_config
from teachonce.stages.evaluate import evaluate
from teachonce.stages.export import ExportRequest, ExportResult, export
from teachonce.stages.import_ import ImportRequest, import_

FILES = (
    "README.md",
    "SHA256SUMS",
    "class_weights.npy",
    "class_weights.safetensors",
    "classes.tsv",
    "config.toml",
    "export.json",
    "prompts.json",
    "prompts.safetensors",
)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHONCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(world: World, student: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an evaluation in it. Never changed."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", student)
    record_accuracy(folder, world, student)
    return folder


def exported(run: Path, out: Path, classes: Any = None, **options: Any) -> ExportResult:
    request = ExportRequest(run=run, out=out, classes=None if classes is None else str(classes), threads=1, **options)
    return export(request, options.pop("reporter", Silent()))


@pytest.fixture(scope="module")
def shared(run: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of it for the names of the tiny world. Never changed."""
    out = tmp_path_factory.mktemp("exports") / "shared"
    exported(run, out, world.root / "classes.tsv", licence="cc-by-4.0")
    return out


def test_the_folder_holds_prompts_weights_card_and_digests(run: Path, shared: Path) -> None:
    """Prompts and config byte for byte; weights are the classifier's features, in the order of the names."""
    assert tuple(sorted(file.name for file in shared.iterdir())) == FILES
    for name in ("prompts.json", "prompts.safetensors", "config.toml"):
        assert (shared / name).read_bytes() == (run / name).read_bytes()
    weights = np.load(shared / "class_weights.npy", allow_pickle=False)
    assert weights.dtype == np.float32 and np.allclose(np.linalg.norm(weights, axis=1), 1, atol=1e-6)
    assert np.array_equal(weights, teachonce.load_prompts(run).classifier(NAMES).numpy())
    assert np.array_equal(weights[3], weights[5]), "crane and Crane are one name to CLIP"
    with safe_open(shared / "class_weights.safetensors", framework="numpy") as file:
        assert np.array_equal(file.get_tensor("weights"), weights)
        assert [tuple(pair) for pair in json.loads(file.metadata()["classes"])] == list(zip(IDS, NAMES, strict=True))
    facts = json.loads((shared / "export.json").read_text())
    assert facts["schema"] == 1 and facts["class_weights"]["tied_names"] == 2 and facts["licence"] == "cc-by-4.0"
    assert facts["structure"]["structure"] == "unshared" and facts["training"]["steps"] == 60


def test_sha256sum_checks_the_folder(shared: Path) -> None:
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=shared, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK\n") == len(FILES) - 1, done.stdout + done.stderr


def test_the_recorded_accuracy_comes_out_again(shared: Path, world: World, student: str) -> None:
    """By NumPy alone on open_clip's image features, and by `evaluate` on the folder."""
    recorded = json.loads((shared / "export.json").read_text())["evaluations"][0]
    model, preprocess = open_clip.create_model_from_pretrained(student)
    model.eval()
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.open(io.BytesIO(photo))) for photo in world.photos.values()])
        features = model.encode_image(images, normalize=True).numpy()
    weights = np.load(shared / "class_weights.npy")
    ids = [line.split("\t")[0] for line in (shared / "classes.tsv").read_text().splitlines()]
    logits = features @ weights.T
    truth = np.array([ids.index(name[:3]) for name in world.photos])
    best = logits >= logits.max(axis=1, keepdims=True) - 1e-7
    assert np.mean(best[np.arange(len(truth)), truth] / best.sum(axis=1)) == pytest.approx(recorded["top1"], abs=1e-9)
    again = evaluate(
        evaluate_request(run=shared, student=student, manifest=world.manifest("tars"), root=world.root, threads=1),
        Silent(),
    )
    assert (again.top1, again.n, again.names_digest) == (recorded["top1"], recorded["n"], recorded["names_digest"])
    assert f"{100 * recorded['top1']:.2f} %" in (shared / "README.md").read_text()


def test_no_folder_of_this_machine_is_in_what_is_written(shared: Path, student: str) -> None:
    """prompts.json alone stays as training wrote it."""
    folder = str(Path(student.removeprefix("local-dir:")).parent)
    for name in set(FILES) - {"prompts.json"}:
        assert folder.encode() not in (shared / name).read_bytes(), name


@pytest.mark.parametrize("name", [name for name in FILES if name != "README.md"])
def test_a_file_that_was_changed_by_hand_is_refused(name: str, shared: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shared, tmp_path / "copy"))
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(IntegrityError, match="SHA256SUMS|is not what was exported") as caught:
        teachonce.load_prompts(copy)
    assert str(copy) in caught.value.message
    if name != "SHA256SUMS":
        assert name in caught.value.message


def test_the_card_may_be_edited_and_parts_may_be_missing(shared: Path, tmp_path: Path) -> None:
    """Prompts load from the three files they need; a list that leads elsewhere is refused."""
    copy = Path(shutil.copytree(shared, tmp_path / "copy"))
    (copy / "README.md").write_text("my own words")
    for name in ("class_weights.npy", "classes.tsv", "config.toml"):
        (copy / name).unlink()
    assert teachonce.load_prompts(copy).tensors_digest == teachonce.load_prompts(shared).tensors_digest
    (copy / "SHA256SUMS").write_text(f"{'a' * 64}  ../secret\n")
    with pytest.raises(IntegrityError, match="leads elsewhere"):
        teachonce.load_prompts(copy)


def test_odd_names_are_kept_in_order(run: Path, tmp_path: Path) -> None:
    """Unicode, odd and doubled spaces and doubled names."""
    lines = ["a\tcafé au lait\n", "b\tred\u2028fox\n", "c\t日本  犬 🦊\n", "d\tred fox\n", "e\tU.S. dollar's “quote”\n"]
    (tmp_path / "names.tsv").write_text("".join(lines), encoding="utf-8")
    result = exported(run, tmp_path / "out", tmp_path / "names.tsv")
    assert (result.classes, result.tied_names) == (5, 2) and result.reloaded
    names = [line.split("\t")[1] for line in (tmp_path / "out/classes.tsv").read_text(encoding="utf-8").splitlines()]
    assert names == ["café au lait", "red fox", "日本 犬 🦊", "red fox", "U.S. dollar's “quote”"]
    weights = np.load(tmp_path / "out/class_weights.npy")
    assert np.array_equal(weights, teachonce.load_prompts(run).classifier(names).numpy())
    assert np.array_equal(weights[1], weights[3])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a\tfox\na\tjay\n", DataError, "'a' comes 2 times"),
        ("fox\njay\n", DataError, "id TAB name"),
        ("", DataError, "no class"),
        ("a\t \n", DataError, "id TAB name"),
        (
            "a\tjay\nb\t" + "fox " * 40 + "\n",
            DataError,
            r"names.tsv: the name of class 'b', 'fox .{0,80}\.\.\.', is too long: it takes",
        ),
        ("a\t<end_of_text>\n", DataError, "names.tsv: the name of class 'a', .* holds a special token"),
        ("a\tfox\tjay\n", DataError, "id TAB name"),
    ],
)
def test_names_that_no_weights_can_be_made_of(
    text: str, error: type[Exception], message: str, run: Path, tmp_path: Path
) -> None:
    """Refused with the line or the name, and nothing is written."""
    (tmp_path / "names.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        exported(run, tmp_path / "out", tmp_path / "names.tsv")
    assert [item.name for item in tmp_path.iterdir()] == ["names.tsv"]


def test_a_place_where_something_is_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "out", tmp_path / "file", tmp_path / "link", run):
        with pytest.raises(UsageError, match="is not empty|is there already"):
            exported(run, out)
    assert (tmp_path / "out/mine").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert exported(run, tmp_path / "empty").out == str(tmp_path / "empty")


def test_without_names_there_are_no_weights_and_it_is_said(run: Path, tmp_path: Path) -> None:
    """And no model is loaded."""
    notes = Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teachonce.stages.export.work.load_clip", None)
        result = export(ExportRequest(run=run, out=tmp_path / "deep/er/out"), notes)
    assert result.classes is None and "class_weights.npy" not in result.files
    assert any("`classes`" in line for line in notes.lines)
    assert "No class weights" in (tmp_path / "deep/er/out/README.md").read_text()


def test_features_that_differ_on_reload_leave_nothing(
    run: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a faulty disk or memory would make them."""
    real, calls = LoadedPrompts.classifier, []

    def drifting(self: LoadedPrompts, names: Any) -> Any:
        calls.append(names)
        return real(self, names) + 1e-7 * (len(calls) - 1)

    monkeypatch.setattr(LoadedPrompts, "classifier", drifting)
    with pytest.raises(IntegrityError, match="loaded again"):
        exported(run, tmp_path / "out", world.root / "classes.tsv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_nothing(
    problem: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: Any) -> None:
        raise problem

    monkeypatch.setattr("teachonce.stages.export.work.write_sums", stop)
    with pytest.raises((KeyboardInterrupt, IncompleteError)):
        exported(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_imported_prompts_are_exported(student: str, world: World, tmp_path: Path) -> None:
    """They have no config; the card says where they are from."""
    clip = load_clip(student)
    tokens = open_clip.SimpleTokenizer()(["X X X X oak."], 32)
    file = dassl_files.saved(tmp_path, dassl_files.dassl_checkpoint(clip.model, tokens))
    import_(ImportRequest(checkpoint=file, student=student, out=tmp_path / "coop"), Silent())
    result = exported(tmp_path / "coop", tmp_path / "out", world.root / "classes.tsv")
    card = (tmp_path / "out/README.md").read_text()
    assert "config.toml" not in result.files and "CoOp or POMP" in card and digest_of(file) in card


def test_prompts_of_the_image_tower_are_exported(student: str, world: World, tmp_path: Path) -> None:
    """Their weights are the names in the hand-written context; the card says that images change."""
    run = make_run(tmp_path / "run", student, tower="image")
    exported(run, tmp_path / "out", world.root / "classes.tsv")
    assert "change images too" in (tmp_path / "out/README.md").read_text()
    assert np.array_equal(
        np.load(tmp_path / "out/class_weights.npy"), teachonce.load_prompts(run).classifier(NAMES).numpy()
    )


def test_an_export_is_exported_for_other_names(shared: Path, tmp_path: Path) -> None:
    """What the run recorded goes on; the weights are new."""
    (tmp_path / "names.tsv").write_text("x\toak\n")
    exported(shared, tmp_path / "out", tmp_path / "names.tsv")
    old, new = (json.loads((folder / "export.json").read_text()) for folder in (shared, tmp_path / "out"))
    assert {**old, "class_weights": None} == {**new, "class_weights": None} and new["class_weights"]["classes"] == 1


def test_data_and_teacher_come_from_the_store(finished: Path, student: str, tmp_path: Path) -> None:
    """Where the run says it was; one that is another by now, or gone, is not believed."""
    from teachonce.labels.store import LabelStore

    run, store = make_run(tmp_path / "run", student), worlds.copy_store(finished, tmp_path)
    results = json.loads((run / "results.json").read_text()) | {"store_id": LabelStore.open(store).store_id()}
    (run / "results.json").write_text(json.dumps(results))
    (run / "events.jsonl").write_text(json.dumps({"event": "start", "step": 0, "labels": str(store)}) + "\n")
    exported(run, tmp_path / "one")
    data = json.loads((tmp_path / "one/export.json").read_text())["data"]
    assert (data["manifest"], data["rows"], data["top_k"], data["classes"]) == ("tiny-wds", 70, 5, 8)
    assert data["teacher"].startswith("local-dir:clip-teacher") and data["templates"] == ["a photo of a {}."]
    assert "tiny-wds" in (tmp_path / "one/README.md").read_text()
    LabelStore.open(store, writable=True).drop("labels", 3)
    exported(run, tmp_path / "two")
    data = json.loads((tmp_path / "two/export.json").read_text())["data"]
    assert data["manifest"] == "" and data["store_id"] == results["store_id"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"digests": {"student": "f00d"}}, FingerprintError, "other student"),
        ({"digests": {"prompts": "f00d"}}, FingerprintError, "other prompts"),
        ({"top1": "high"}, IntegrityError, "no result of"),
        ({"run": None}, IntegrityError, "no result of"),
    ],
)
def test_results_of_other_prompts_are_refused(
    change: dict[str, Any], error: type[Exception], message: str, run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    file = copy / "evaluations/val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(error, match=message):
        exported(copy, tmp_path / "out")
    file.write_text("{")
    with pytest.raises(IntegrityError, match="cannot be read"):
        exported(copy, tmp_path / "out")
    file.unlink()
    (copy / "results.json").write_text(json.dumps({"steps": 1, "prompts_digest": "f00d"}))
    with pytest.raises(FingerprintError, match="about other prompts"):
        exported(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_that_was_changed_after_the_run_is_not_exported(run: Path, tmp_path: Path) -> None:
    """Other steps than the run began with, no TOML, no text: refused by name, and nothing is written."""
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    file, log = copy / "config.toml", copy / "events.jsonl"
    text = file.read_text()
    log.write_text(json.dumps({"event": "start", "step": 0, "config_digest": load_train_config(file).digest()}) + "\n")
    exported(copy, tmp_path / "sound")
    for data in (text.replace("seed = 0", "seed = 7"), text + "x = = 3", "\udcff"):
        file.write_bytes(data.encode(errors="surrogateescape"))
        with pytest.raises(IntegrityError, match="config.toml (is not what the run began|cannot be read)") as caught:
            exported(copy, tmp_path / "out")
        assert "train again" in caught.value.hint
    file.write_text(text)
    log.write_bytes(b"\xff\n")
    with pytest.raises(IntegrityError, match="events.jsonl cannot be read"):
        exported(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_run_and_no_student(tmp_path: Path, run: Path, world: World, teacher: str) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        exported(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FingerprintError, match="belong to a student"):
        exported(run, tmp_path / "out", world.root / "classes.tsv", student=teacher)
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_moved_is_named(student: str, world: World, tmp_path: Path) -> None:
    """Export and loading take its new place; without it the message says how to give it."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(student.removeprefix("local-dir:"), old)
    run = make_run(tmp_path / "run", f"local-dir:{old}")
    old.rename(new)
    with pytest.raises(UsageError, match="holds no open_clip_config.json"):
        exported(run, tmp_path / "out", world.root / "classes.tsv")
    exported(run, tmp_path / "out", world.root / "classes.tsv", student=f"local-dir:{new}")
    with pytest.raises(UsageError) as caught:
        teachonce.load_prompts(tmp_path / "out").classifier(NAMES)
    assert "model='local-dir:PATH'" in caught.value.hint
    loaded = teachonce.load_prompts(tmp_path / "out", model=f"local-dir:{new}")
    assert np.array_equal(loaded.classifier(NAMES).numpy(), np.load(tmp_path / "out/class_weights.npy"))


def test_a_push_is_asked_for_and_may_fail(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is uploaded otherwise; a bad id is refused before anything is written; a failure leaves the folder."""
    pushed: list[Any] = []

    def push(folder: Path, repo: str, message: str) -> str:
        pushed.append((folder, repo, sorted(file.name for file in folder.iterdir())))
        if repo == "user/broken":
            raise EnvironmentFault("no network")
        return f"https://hub.example/{repo}"

    monkeypatch.setattr("teachonce.stages.export.work.push", push)
    assert exported(run, tmp_path / "a").pushed is None and pushed == []
    for bad in ("repo", "user/repo@v1", "../user/repo"):
        with pytest.raises(UsageError):
            exported(run, tmp_path / "b", push=bad)
    assert not (tmp_path / "b").exists()
    assert exported(run, tmp_path / "b", push="user/repo").pushed == "https://hub.example/user/repo"
    assert pushed[0][:2] == (tmp_path / "b", "user/repo") and "README.md" in pushed[0][2]
    assert 'load_prompts("user/repo"' in (tmp_path / "b/README.md").read_text()
    with pytest.raises(EnvironmentFault):
        exported(run, tmp_path / "c", push="user/broken")
    teachonce.load_prompts(tmp_path / "c")
