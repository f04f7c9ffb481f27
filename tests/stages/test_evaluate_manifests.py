"""Every evaluation set that ships: a made-up one in its layout gives the figures that open_clip gives by itself."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import coop_layouts
import numpy as np
import open_clip
import pytest
import torch
import worlds
from coop_layouts import CLASSES, EACH, lay_out
from PIL import Image
from requests_of import evaluate_request

from teachonce.core.progress import Silent
from teachonce.data.index import build_index, split_classes
from teachonce.data.manifests import load_manifest, shipped_manifests
from teachonce.errors import DataError
from teachonce.stages.evaluate import EvaluateResult, evaluate
from teachonce.stages.index import IndexRequest, index


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache; the model is loaded once."""
    torch.set_num_threads(1)
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("teachonce.evaluation.contender.load_clip", worlds.loaded_once)


def run(student: str, manifest: str, root: Path, **options: Any) -> EvaluateResult:
    """Evaluate the test split, one thread."""
    given: dict[str, Any] = {"run": None, "split": "test", "threads": 1}
    return evaluate(evaluate_request(student=student, manifest=manifest, root=root, **(given | options)), Silent())


@functools.lru_cache(maxsize=1)
def image_features(student: str) -> torch.Tensor:
    """Of the made-up photos, by open_clip alone."""
    model, preprocess = open_clip.create_model_from_pretrained(student)
    pixels = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data, _ in coop_layouts.photos()])
    with torch.inference_mode():
        return model.eval().encode_image(pixels, normalize=True).double()


def brute(student: str, names: tuple[str, ...], template: str) -> dict[str, float]:
    """Figures in float64, by open_clip's own text tower."""
    model, _ = open_clip.create_model_from_pretrained(student)
    tokens = open_clip.get_tokenizer(student)([template.replace("{}", name) for name in names])
    with torch.inference_mode():
        text = model.eval().encode_text(tokens, normalize=True).double()
    logits = (image_features(student) @ text.T * float(model.logit_scale.detach().exp())).numpy()
    labels = np.repeat(np.arange(len(CLASSES)), EACH)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    right = logits.argmax(1) == labels
    return {
        "top1": right.mean(),
        "macro": np.mean([right[labels == c].mean() for c in range(len(CLASSES))]),
        "nll": -np.log(p[np.arange(len(labels)), labels]).mean(),
    }


@pytest.mark.parametrize("name", coop_layouts.NAMES)
def test_a_set_in_its_shipped_layout_is_scored_as_by_open_clip(name: str, student: str, tmp_path: Path) -> None:
    """All listed images and none else, the right names, the manifest's template; CIFAR also as folders."""
    made = lay_out(name, tmp_path)
    result = run(student, made.manifest, tmp_path)
    template = load_manifest(name).template
    assert result.templates == (template,) and result.template == template
    assert (result.n, result.failed, result.classes, result.classes_seen) == (20, 0, len(made.names), len(CLASSES))
    for key, value in brute(student, made.names, template).items():
        assert getattr(result, key) == pytest.approx(value, abs=2e-5), key
    if name.startswith("cifar"):
        folders = run(student, made.manifest, tmp_path, split="test-folders")
        assert folders.n == 20 and folders.digests["vocabulary"] != result.digests["vocabulary"]


@pytest.mark.parametrize("name", coop_layouts.NAMES)
def test_missing_data_are_named_with_the_way_to_get_them(name: str, student: str, tmp_path: Path) -> None:
    """Exit 3 before a model is loaded: the path, and what the manifest says of the site; `index` agrees."""
    with pytest.raises(DataError, match="are not there: missing") as caught:
        run(student, name, tmp_path)
    manifest = load_manifest(name)
    assert str(tmp_path) in caught.value.message and caught.value.hint == manifest.get
    text = shipped_manifests()[name].read_text(encoding="utf-8")
    assert "Fetch" in manifest.get and "# Template: " in text, "where the data and the template come from"
    assert index(IndexRequest(manifest=name, root=tmp_path, split="test"), Silent()).exit_code == 3


@pytest.mark.parametrize("name", ["oxford-pets", "fgvc-aircraft", "imagenet-a"])
def test_a_release_with_too_few_images_is_refused(name: str, student: str, tmp_path: Path) -> None:
    """The shipped manifest knows how many there must be."""
    lay_out(name, tmp_path)
    with pytest.raises(DataError, match="holds 20 images; its manifest says"):
        run(student, name, tmp_path)


def test_a_listed_image_that_is_not_there_is_named(student: str, tmp_path: Path) -> None:
    """Not passed over: the figure would be of another set. `index` names it too."""
    made = lay_out("dtd", tmp_path)
    gone = tmp_path / "dtd/images/piano/piano_0002.jpg"
    gone.unlink()
    with pytest.raises(DataError, match=str(gone)):
        run(student, made.manifest, tmp_path)
    faults = index(IndexRequest(manifest=made.manifest, root=tmp_path, split="test"), Silent()).faults
    assert any(str(gone) in fault.found for fault in faults)


def test_names_of_imagenet_come_from_the_file_beside_it(student: str, tmp_path: Path) -> None:
    """A name that the file lacks is an error; without the file, the set counts as missing."""
    made = lay_out("imagenet-r", tmp_path)
    file = tmp_path / "imagenet-rendition/classnames.txt"
    manifest = load_manifest(made.manifest)
    assert (
        split_classes(manifest, "test", tmp_path).names[0] == "thing 1"
    )  # the first of the 200 is the second of 1,000
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:1] + lines[2:]))
    with pytest.raises(DataError, match="has no name for 1 classes, the first is 'n01443537'"):
        run(student, made.manifest, tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"missing .*classnames.txt"):
        run(student, made.manifest, tmp_path)


def test_folders_by_number_are_lines_of_the_class_list(tmp_path: Path) -> None:
    """Folder 3 of ImageNet-V2 is ImageNet's fourth class, whatever order folders sort in as text."""
    made = lay_out("imagenet-v2", tmp_path)
    coop_layouts.write(tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val/10/x.jpeg", made.photos[0][0])
    built = build_index(load_manifest(made.manifest), "test", tmp_path, Silent())
    assert {built.key(i).partition("/")[0]: int(built.label[i]) for i in range(len(built))} == {
        str(number): number for number in (0, 1, 2, 3, 4, 10)
    }
