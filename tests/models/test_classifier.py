"""Zero-shot scores equal brute force with ties shared; class features equal open_clip's own; intervals are Wilson's."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from teachonce.errors import DataError, EnvironmentFault, UsageError
from teachonce.evaluation.cache import SplitFeatures, cached_features, feature_key
from teachonce.evaluation.statistics import wilson
from teachonce.models.classifier import equal_rows, require_uncut, score, template_features
from teachonce.models.clip import LoadedClip, load_clip, weights_digest
from teachonce.models.spec import parse_spec

torch.set_num_threads(1)
NAMES = ("red fox", "Crane", "blue jay", "crane", "a rather long name of some thing", "cup  of tea")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> LoadedClip:
    """A tiny random CLIP."""
    return load_clip(worlds.session_clip(tmp_path_factory, "teacher"))


@torch.inference_mode()
def plain_features(clip: LoadedClip, texts: list[str]) -> torch.Tensor:
    """What open_clip's own encode_text says, one text at a time."""
    parts = [clip.model.encode_text(clip.tokenizer([text])) for text in texts]  # type: ignore[operator]
    return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)


@pytest.mark.parametrize(
    "template", ["a photo of a {}.", "{}", "art of the {}, in colour.", "a {}", "({})", "a photo of a ({}).", " {} "]
)
def test_class_features_equal_open_clips_own(clip: LoadedClip, template: str) -> None:
    """Whether the fast tower or the plain way runs: the same features to rounding, and ties exactly equal."""
    joined = template_features(clip, NAMES, template)
    torch.testing.assert_close(joined, plain_features(clip, [template.format(n) for n in NAMES]), atol=2e-5, rtol=1e-4)
    assert torch.equal(joined[1], joined[3])
    torch.testing.assert_close(joined.norm(dim=1), torch.ones(len(NAMES)))
    assert (joined[0] @ joined[2]) < 0.99, "random features differ, or this test shows nothing"


@pytest.mark.parametrize("template", ["a photo", "{} and {}", ""])
def test_a_template_needs_one_place_for_the_name(clip: LoadedClip, template: str) -> None:
    """Exit 2, and the template is quoted."""
    with pytest.raises(UsageError, match="must hold exactly one"):
        template_features(clip, NAMES, template)


def test_a_name_that_does_not_fit_is_refused(clip: LoadedClip) -> None:
    """open_clip would cut it in silence."""
    for template in ("a photo of a {}.", "{}"):
        with pytest.raises(UsageError):
            template_features(clip, ["word " * 40], template)


class WordTokenizer:
    """A tokenizer without `encode`, as those of the hub are: cuts in silence, ends texts with 2, pads with 0."""

    def __init__(self, left: bool) -> None:
        self.left = left

    def __call__(self, texts: list[str], context_length: int = 6) -> torch.Tensor:
        rows = [[*(3 + len(word) for word in text.split()[: context_length - 1]), 2] for text in texts]
        padded = [[0] * (context_length - len(row)) for row in rows]
        return torch.tensor([pad + row if self.left else row + pad for row, pad in zip(rows, padded, strict=True)])


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("long", ["a bb ccc dddd eeeee f", "a a a a a a", "a " * 40])
def test_no_tokenizer_cuts_a_name_in_silence(long: str, left: bool) -> None:
    """Whatever its padding; a text that just fits is taken."""
    tokenizer, fits = WordTokenizer(left), "a bb ccc dddd eeeee"
    require_uncut(tokenizer, [fits, ""], tokenizer([fits, ""]))
    with pytest.raises(UsageError, match="at least .* tokens, the text tower has room for 6"):
        require_uncut(tokenizer, [fits, long], tokenizer([fits, long]))


def test_names_that_sound_alike_have_equal_features_and_only_they(clip: LoadedClip) -> None:
    """`equal_rows` finds exactly the classes that share their tokens."""
    rows = equal_rows(template_features(clip, NAMES, "a photo of a {}.")).tolist()
    for i, j in itertools.combinations(range(len(NAMES)), 2):
        assert (rows[i] == rows[j]) == (NAMES[i].lower() == NAMES[j].lower())


def brute_score(logits: np.ndarray, label: int, inverse: list[int]) -> tuple[float, float]:
    """Mean over all orders of tied classes of: the label is first, the label is among the first five."""
    values = logits[inverse]
    orders = []
    groups = [
        list(group)
        for _, group in itertools.groupby(
            sorted(range(len(values)), key=lambda c: -values[c]), key=lambda c: -values[c]
        )
    ]
    for choice in itertools.product(*(itertools.permutations(group) for group in groups)):
        orders.append([c for group in choice for c in group])
    return (
        float(np.mean([order[0] == label for order in orders])),
        float(np.mean([label in order[:5] for order in orders])),
    )


@settings(max_examples=120, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 2**31), st.data())
def test_scores_share_the_credit_of_ties(names: list[int], seed: int, data: st.DataObject) -> None:
    """Against every order that breaks the ties: 1/m for m classes of one name, also across the fifth place."""
    inverse = [sorted(set(names), key=names.index).index(n) for n in names]
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(max(inverse) + 1, 6)).astype(np.float32)
    images = rng.normal(size=(4, 6)).astype(np.float32)
    labels = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=4, max_size=4))
    scores = score(
        torch.from_numpy(images), torch.from_numpy(features[inverse]), torch.tensor(labels), torch.tensor(inverse)
    )
    logits = images @ features.T
    for row, label in enumerate(labels):
        top1, top5 = brute_score(logits[row], label, inverse)
        assert scores.top1[row] == pytest.approx(top1) and scores.top5[row] == pytest.approx(top5)
        assert scores.predicted[row] == inverse.index(int(logits[row].argmax()))


def test_many_images_are_scored_in_pieces() -> None:
    """2,500 images in three pieces: the same as one product."""
    generator = torch.Generator().manual_seed(0)
    images, classes = torch.randn(2500, 8, generator=generator), torch.randn(30, 8, generator=generator)
    labels = torch.randint(0, 30, (2500,), generator=generator)
    scores = score(images, classes, labels, torch.arange(30))
    ranks = (images @ classes.T).argsort(1, descending=True)
    assert scores.top1.mean() == pytest.approx((ranks[:, 0] == labels).double().mean().item(), abs=1e-3)
    assert scores.top5.mean() == pytest.approx(
        (ranks[:, :5] == labels[:, None]).any(1).double().mean().item(), abs=1e-3
    )


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (0, 20, 0.0, 0.1611),
    ],
)
def test_intervals_are_those_of_wilson(hits: int, n: int, low: float, high: float) -> None:
    """Published values (Newcombe 1998, table I, method 3) and the closed forms at 0 and 1."""
    assert wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_nothing_is_everything() -> None:
    """No image, no knowledge."""
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_a_model_is_known_by_its_weights(clip: LoadedClip, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same weights elsewhere: the same digest. One changed number: another."""
    assert weights_digest(clip.model) == clip.digest == load_clip(clip.spec).digest
    other = load_clip(worlds.session_clip(tmp_path_factory, "other"))
    assert other.digest != clip.digest
    with torch.no_grad():
        other.model.logit_scale += 1e-6
    assert weights_digest(other.model) != other.digest
    assert clip.logit_scale == pytest.approx(8.0)


@pytest.mark.parametrize("spec", ["ViT-B-32", "ViT-B-32/", "/openai", "local-dir:/nowhere", ""])
def test_what_is_no_model_spec_is_a_usage_error(spec: str) -> None:
    """With the three forms that are."""
    with pytest.raises(UsageError) as caught:
        parse_spec(spec)
    assert caught.value.hint


def test_a_folder_with_other_weights_is_an_environment_fault(clip: LoadedClip, tmp_path: Path) -> None:
    """Cut-off weights: exit 6 with the spec, no traceback."""
    import shutil

    folder = Path(clip.spec.removeprefix("local-dir:"))
    shutil.copytree(folder, tmp_path / "m")
    file = tmp_path / "m" / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(EnvironmentFault, match="local-dir:"):
        load_clip(f"local-dir:{tmp_path / 'm'}")
    (tmp_path / "m" / "open_clip_config.json").write_text("{")
    with pytest.raises(EnvironmentFault, match="local-dir:"):
        load_clip(f"local-dir:{tmp_path / 'm'}")


def test_cached_features_are_trusted_only_while_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First computed, then read; a changed byte, a cut file or a missing digest: computed again."""
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path))
    calls = []

    def compute() -> SplitFeatures:
        calls.append(1)
        return SplitFeatures(np.arange(12, dtype=np.float32).reshape(4, 3))

    assert cached_features("key", compute)[1] is False
    features, cached = cached_features("key", compute)
    assert cached and np.array_equal(features.features, compute().features)
    file = tmp_path / "features" / "key.npy"
    sound = file.read_bytes()
    for broken in (sound[:-1], sound[:-1] + b"\x01", b""):
        file.write_bytes(broken)
        again, cached = cached_features("key", compute)
        assert not cached and np.array_equal(again.features, features.features) and file.read_bytes() == sound
    file.with_suffix(".sha256").unlink()
    assert cached_features("key", compute)[1] is False
    assert sorted(item.name for item in file.parent.iterdir()) == ["key.npy", "key.sha256"]


def test_a_cache_that_cannot_be_written_does_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only home: the features are still there, or the error is one of ours that names the place."""
    from teachonce.errors import TeachOnceError

    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TEACHONCE_CACHE", str(tmp_path / "file"))
    try:
        features, cached = cached_features("key", lambda: SplitFeatures(np.ones((1, 2), np.float32)))
    except TeachOnceError as problem:
        assert str(tmp_path) in str(problem)
    else:
        assert features.features.shape == (1, 2) and not cached


@pytest.mark.parametrize("layout", ["wds", "folders"])
def test_the_cache_key_sees_changed_archives(layout: str, tmp_path: Path) -> None:
    """Other bytes of the same size, or another model: another key."""
    from teachonce.core.progress import Silent
    from teachonce.data.index import build_index
    from teachonce.data.manifests import load_manifest

    world = worlds.make_world(tmp_path, worlds.make_photos())

    def key(*parts: str) -> str:
        return feature_key(
            build_index(load_manifest(world.manifest(layout)), "val", tmp_path, Silent()), tmp_path, *parts
        )

    before = key("m")
    assert key("m") == before != key("n")
    file = tmp_path / ("wds/part-0.tar" if layout == "wds" else "folders/n01/n01_00.jpg")
    data = file.read_bytes()
    file.write_bytes(data[:600] + b"xy" + data[602:])  # inside of the first image, in both layouts
    assert key("m") != before


def test_tagged_weights_get_the_activation_they_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ViT-L-14/openai` is quick-GELU although the architecture's name does not say so; laion's weights are not."""
    from teachonce.models import clip as clip_models

    asked = {}

    def instead(name: str, **options: object) -> None:
        asked[name, options["pretrained"]] = options["force_quick_gelu"]
        raise OSError("no network here")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", instead)
    for spec in ("ViT-L-14/openai", "ViT-L-14/laion2b_s32b_b82k"):
        with pytest.raises(EnvironmentFault, match="no network here"):
            clip_models.load_clip(spec)
    assert asked == {("ViT-L-14", "openai"): True, ("ViT-L-14", "laion2b_s32b_b82k"): False}


def test_the_digest_covers_the_activation() -> None:
    """The same weights with another activation are another model."""
    plain, quick = torch.nn.Sequential(torch.nn.GELU()), torch.nn.Sequential(torch.nn.SiLU())
    assert weights_digest(plain) != weights_digest(quick)


@pytest.mark.parametrize("which", ["image", "class"])
def test_features_that_are_not_numbers_are_never_right(which: str) -> None:
    """No comparison with NaN holds, so they would score 1."""
    images, classes = torch.eye(3), torch.eye(3)
    (images if which == "image" else classes)[1, 0] = float("nan")
    with pytest.raises(DataError, match=f"1 of 3 {which} features"):
        score(images, classes, torch.arange(3), torch.arange(3))
