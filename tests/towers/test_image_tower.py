"""The prompted image tower equals open_clip without prompts and a plain reference with them; others are refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, get_args

import open_clip
import pytest
import torch
from image_reference import (
    KINDS,
    TEXT,
    L,
    M,
    build,
    exact_model_of,
    gradients,
    learner_of,
    model_of,
    photos,
    plain_features,
    prompts_of,
    tower_of,
)
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.errors import TeachOnceError, UnsupportedModelError, UsageError
from teachonce.models.learner import NOISE, image_learner
from teachonce.models.prompts import Prompts
from teachonce.towers.image_tower import ImageTower, image_obstacle
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import REPLACING, Init, Structure, allocate


@pytest.mark.parametrize("kind", KINDS)
def test_without_prompts_features_equal_encode_image(kind: str) -> None:
    model, tower, pixels = model_of(kind), tower_of(kind), photos(kind, 6)
    empty = SlotPrompts(torch.zeros(0, tower.width))
    with torch.no_grad():
        theirs = model.encode_image(pixels, normalize=True)
        for prompts in (None, empty):
            ours = tower.features(prompts, pixels)
            assert ours.dtype == torch.float32
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    similarity = (theirs @ theirs.T)[~torch.eye(6, dtype=torch.bool)]
    assert similarity.mean() < 0.9, "the weights are too small for this test to tell images apart"


@pytest.mark.parametrize("structure", get_args(Structure))
@pytest.mark.parametrize("depth", [0, 1, L - 1])
@pytest.mark.parametrize("init", ["normal", "template"])
def test_features_and_gradients_equal_the_plain_reference(structure: Structure, depth: int, init: Init) -> None:
    """At a perturbed point; and every slot of every block and letter has a gradient. Float64 shows that the maths is
    the same; float32 is then off by rounding only.
    """
    for kind in ("openai", "average", "layer_scale"):
        learner, pixels = learner_of(kind, structure, depth, init), photos(kind)
        exact, model = copy.deepcopy(learner).double(), exact_model_of(kind)
        theirs = plain_features(model, exact(), pixels.double())
        expected = gradients(theirs, exact)
        ours = ImageTower.from_clip(model).features(exact(), pixels.double())
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm()
        allocated = {"context"} if structure not in REPLACING else set()
        allocation = allocate(structure, L, depth)
        allocated |= {"state"} if allocation.tied else set(allocation.blocks)
        allocated |= {"gate"} if init == "template" else set()
        allocated |= {"added"} if allocation.added else set()
        assert set(expected) == allocated
        for name, gradient in gradients(ours, exact).items():
            reference = expected[name]
            assert (gradient - reference).norm() <= 1e-10 * reference.norm(), (kind, name)
            assert (reference if name == "gate" else reference.norm(dim=-1)).abs().min() > 1e-4, (kind, name)
        rounded = tower_of(kind).features(learner(), pixels)
        assert (rounded - theirs).norm() <= 1e-5 * theirs.norm()
        whole = torch.cat([x.flatten() for x in expected.values()])
        rounded_gradients = torch.cat([x.flatten() for x in gradients(rounded, learner).values()])
        assert (rounded_gradients - whole).norm() <= 1e-5 * whole.norm(), kind


@pytest.mark.parametrize("init", ["normal", "template"])
def test_what_is_not_allocated_would_be_dead(init: Init) -> None:
    """A query and a residual of the last block, or of a replaced one that another follows."""
    model, pixels = exact_model_of("openai"), photos("openai").double()
    carried = copy.deepcopy(learner_of("openai", "qkvr", 0, init)).double()()
    more = {name: torch.randn(L, M, 32, dtype=torch.float64, requires_grad=True) for name in ("query", "residual")}
    features = plain_features(model, replace(carried, **more), pixels)
    for gradient in torch.autograd.grad(features[:, 0].sum(), list(more.values())):
        assert (gradient[:-1].norm(dim=2) > 0).all() and not gradient[-1].any()
    with pytest.raises(TeachOnceError, match="do not fit 3 blocks of width 32"):
        tower_of("openai").features(replace(carried, **more), pixels)
    replaced = copy.deepcopy(learner_of("openai", "unshared-replace", 0, init)).double()()
    leaving = {name: torch.randn(1, M, 32, dtype=torch.float64, requires_grad=True) for name in ("query", "residual")}
    features = plain_features(model, replace(replaced, **leaving), pixels)
    assert not any(x.any() for x in torch.autograd.grad(features[:, 0].sum(), list(leaving.values())))


@pytest.mark.parametrize("structure", get_args(Structure))
@pytest.mark.parametrize("kind", ["openai", "average"])
def test_a_template_start_is_the_frozen_student_to_the_bit(structure: Structure, kind: str) -> None:
    tower, pixels = tower_of(kind), photos(kind)
    for depth in (0, 1, L - 1):
        learner = image_learner(tower, prompts_of(structure, depth))
        features = tower.features(learner(), pixels)
        assert torch.equal(features, tower.features(None, pixels))
        gate = gradients(features, learner)["gate"]
        assert (gate.abs() > 1e-5).all(), "the closed gate is what opens first"
        words = image_learner(tower, prompts_of(structure, depth, init="words"))
        assert (tower.features(words(), pixels) - features).abs().max() > 1e-3, "without a gate the slots count at once"


@pytest.mark.parametrize("init", ["normal", "template"])
def test_query_prompts_change_what_the_image_says(init: Init) -> None:
    """Slots ask the patches, so the change differs from image to image."""
    learner, pixels = learner_of("laion", "q", 0, init), photos("laion")
    tower = tower_of("laion")
    with torch.no_grad():
        prompts = learner()
        changed = tower.features(prompts, pixels) - tower.features(replace(prompts, query=None), pixels)
    assert (changed.norm(dim=1) > 1e-2).all()
    assert (changed[0] - changed[1]).norm() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_and_company_do_not_matter(kind: str) -> None:
    learner, pixels = learner_of(kind, "unshared", 0), photos(kind, 5)
    tower = tower_of(kind)
    whole, parts = gradients(tower.features(learner(), pixels), learner), []
    direction = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    for rows in (slice(0, 2), slice(2, 5)):
        features = tower.features(learner(), pixels[rows])
        parts.append(torch.autograd.grad((features * direction[rows]).sum(), list(learner.parameters())))
    for full, first, second in zip(whole.values(), *parts, strict=True):
        assert torch.allclose(first + second, full, rtol=1e-4, atol=1e-5 * float(full.abs().max()))


@pytest.mark.parametrize("structure", ["qkvr", "unshared-replace"])
@pytest.mark.parametrize("init", ["normal", "template"])
def test_under_autocast_features_are_float32_and_near(structure: Structure, init: Init) -> None:
    learner, pixels = learner_of("openai", structure, 1, init, moved=0.3), photos("openai")
    tower = tower_of("openai")
    with torch.autocast("cpu", torch.bfloat16):
        half, frozen = tower.features(learner(), pixels), tower.features(None, pixels)
        theirs = model_of("openai").encode_image(pixels, normalize=True)
    full = tower.features(learner(), pixels)
    assert half.dtype == frozen.dtype == torch.float32
    assert (frozen - theirs.float()).abs().max() < 1e-2
    assert 0 < (half - full).abs().max() < 5e-2
    exact = gradients(full, learner)
    for name, gradient in gradients(half, learner).items():
        assert gradient.dtype == torch.float32 and gradient.isfinite().all(), name
        assert F.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize(
    ("structure", "init"),
    [("qkvr", "normal"), pytest.param("unshared-replace", "template", marks=pytest.mark.slow)],
)
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # asked for by torch.compile
def test_it_compiles_as_one_graph(structure: Structure, init: Init) -> None:
    """PyTorch before 2.14 breaks the graph in two, because it does not know a slice as a default; numbers are equal."""
    whole = torch.__version__ >= "2.14"
    learner, pixels = learner_of("laion", structure, 1, init), photos("laion")
    tower = tower_of("laion")
    compiled = torch.compile(lambda images: tower.features(learner(), images), backend="aot_eager", fullgraph=whole)
    ours, plain = compiled(pixels), tower.features(learner(), pixels)
    assert torch.allclose(ours, plain, rtol=0, atol=1e-6)
    for mine, theirs in zip(gradients(ours, learner).values(), gradients(plain, learner).values(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_tower_is_frozen_and_shares_the_models_weights() -> None:
    model = build("openai")
    tower = ImageTower.from_clip(model)
    assert not any(x.requires_grad for x in model.visual.parameters())  # type: ignore[union-attr]
    assert tower.blocks[0] is model.visual.transformer.resblocks[0]  # type: ignore[union-attr]
    assert (tower.width, tower.layers, tower.device.type) == (32, L, "cpu")


def test_images_and_prompts_of_other_shapes_are_refused() -> None:
    tower, good = tower_of("openai"), photos("openai")
    for pixels in (good[:, :1], good[0], good[:, :, :16], F.pad(good, (0, 16))):
        with pytest.raises(TeachOnceError, match=r"do not fit a tower for \('B', 3, 32, 32\)"):
            tower.features(None, pixels)
    slots = torch.zeros(M, 32)
    for prompts in (
        SlotPrompts(torch.zeros(M, 31)),
        SlotPrompts(slots, gate=torch.zeros(L + 1)),
        SlotPrompts(slots, key=torch.zeros(L + 1, M, 32)),
    ):
        with pytest.raises(TeachOnceError, match="do not fit 3 blocks of width 32"):
            tower.features(prompts, good)


@pytest.mark.parametrize("structure", get_args(Structure))
def test_slots_start_as_distinct_noise_from_the_seed(structure: Structure) -> None:
    tower = tower_of("laion")
    for init in get_args(Init):
        asked = Prompts(structure=structure, init=init, image_length=40, image_depth=2)
        first, again, other = (image_learner(tower, asked, seed) for seed in (4, 4, 5))
        start = first()
        assert all(torch.equal(x, again().tensors()[name]) for name, x in start.tensors().items())
        assert (start.gate is not None) == (init == "template") and not any(x.any() for x in first.parameters())
        assert first.trainable_parameters() == allocate(structure, L, 2).parameters(40, 48) + L * (init == "template")
        if start.context is not None:
            assert start.context.std().item() == pytest.approx(NOISE, rel=0.1)
            assert not any(x.any() for name, x in start.tensors().items() if name not in ("context", "added"))
        noise = {n: x for n, x in start.tensors().items() if n in ("context", "added") or start.replace and n != "gate"}
        for name, x in noise.items():
            assert not torch.equal(x, other().tensors()[name])
            assert torch.cdist(x.reshape(-1, 48), x.reshape(-1, 48)).fill_diagonal_(1).min() > 0
        if start.key is not None and start.replace:
            assert start.key[0].std().item() == pytest.approx(NOISE, rel=0.1)
            assert (start.key[1].std() / tower.patch_scales()[1]).item() == pytest.approx(1, abs=0.7)


def test_units_are_the_patches_sizes_at_each_block() -> None:
    model, tower = model_of("laion"), tower_of("laion")
    seen: list[Tensor] = []
    hooks = [
        b.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        for b in model.visual.transformer.resblocks
    ]
    with torch.no_grad():
        model.encode_image(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    patches = torch.stack([x[0, 1:] for x in seen])
    expected = ((patches - patches.mean(2, keepdim=True)) ** 2).mean((1, 2)).sqrt()
    assert torch.allclose(tower.patch_scales(), expected, rtol=1e-4)
    assert expected.max() > 1.3 * expected.min()
    scaled, plain = (
        image_learner(tower, prompts_of("v", 0, init="normal", layer_scale=units)) for units in (True, False)
    )
    for learner, units in ((scaled, expected), (plain, torch.ones(L))):
        with torch.no_grad():
            learner.get_parameter("value").fill_(1.0)
            learner.get_parameter("context").fill_(1.0)
            moved = learner()
        assert moved.value is not None and torch.allclose(moved.value[:, 0, 0], units, rtol=1e-4)
        assert moved.context is not None and moved.context.mean() == pytest.approx(float(units[0]), abs=1e-2)


@pytest.mark.parametrize("structure", ["unshared", "kvr", "unshared-replace"])
def test_a_shared_context_starts_any_structure(structure: Structure) -> None:
    """Carried: the same features. Replaced: the same on the grey image whose states are taken."""
    tower = tower_of("openai")
    shared = learner_of("openai", "shared", 0)()
    for depth in (1, L - 1, 0):
        learner = image_learner(tower, prompts_of(structure, depth, init="normal"))
        learner.load_start(shared)
        pixels = torch.zeros(1, 3, 32, 32) if structure in REPLACING else photos("openai")
        assert torch.allclose(tower.features(learner(), pixels), tower.features(shared, pixels), rtol=0, atol=1e-5)


def test_starts_that_cannot_be_are_refused() -> None:
    tower = tower_of("openai")
    with pytest.raises(ValueError, match="image_length must be above 0"):
        prompts_of("unshared", 0, image_length=0)
    with pytest.raises(UsageError, match="image_depth 4 is out of range"):
        image_learner(tower, prompts_of("unshared", L + 1))
    learner = image_learner(tower, prompts_of("unshared", 0))
    with pytest.raises(UsageError, match="cannot start prompts of"):
        learner.load_start(learner_of("openai", "shared", 0)())  # without the gate it is another function


# Other towers.


def coca() -> nn.Module:
    """open_clip's captioner."""
    vision = {"layers": 1, "width": 32, "head_width": 16, "image_size": 32, "patch_size": 16}
    captions = {"width": 16, "heads": 2, "layers": 1, "context_length": 8, "vocab_size": 16}
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    model: nn.Module = open_clip.CoCa(16, captions, text, {**vision, "attentional_pool": True, "output_tokens": True})
    return model


def timm_model(name: str, pool: str = "avg") -> nn.Module:
    """A timm tower without weights: structure is all that is looked at."""
    vision = {"timm_model_name": name, "timm_pool": pool, "image_size": 224}
    with torch.device("meta"):
        model: nn.Module = open_clip.CustomTextCLIP(16, vision, dict(TEXT))
    return model


def with_changed_blocks(kind: str, **changes: Any) -> nn.Module:
    """A timm tower whose first block's attention has other attributes."""
    model: Any = build(kind)
    for name, change in changes.items():
        setattr(model.visual.trunk.blocks[0].attn, name, change)
    changed: nn.Module = model
    return changed


def with_another_part(kind: str, name: str, part: nn.Module | None) -> nn.Module:
    """A timm tower with another module in place of one of its own."""
    model: Any = build(kind)
    setattr(model.visual.trunk, name, part)
    changed: nn.Module = model
    return changed


RESNET = {"layers": [1, 1, 1, 1], "width": 32, "image_size": 32, "head_width": 16}
REFUSED = {
    "ResNet": (lambda: open_clip.CLIP(16, dict(RESNET), dict(TEXT)), "ModifiedResNet, which is made of convolutions"),
    "ConvNeXt": (lambda: timm_model("convnext_tiny"), "timm tower of class ConvNeXt, which is made of convolutions"),
    "FastViT": (lambda: timm_model("fastvit_mci0"), "timm tower of class FastVit, which is made of convolutions"),
    "ViTamin": (lambda: timm_model("vitamin_small_224"), r"convolutions of class MbConvStages .*\(as in ViTamin\)"),
    "Swin": (lambda: timm_model("swin_tiny_patch4_window7_224"), "timm tower of class SwinTransformer;"),
    "relative positions": (
        lambda: timm_model("vit_relpos_small_patch16_224"),
        "timm tower of class VisionTransformerRelPos;",
    ),
    "maximum": (lambda: timm_model("vit_tiny_patch16_224", "max"), "pooling of type 'max'"),
    "other timm blocks": (lambda: timm_model("vit_7b_patch16_dinov3", "avg"), "RotaryEmbeddingDinoV3"),
    "parallel blocks": (lambda: timm_model("vit_small_patch16_18x2_224", "avg"), "blocks of class ParallelThingsBlock"),
    "gated attention": (lambda: with_changed_blocks("siglip", gate=nn.Linear(24, 24)), "attention whose outcome is"),
    "shared heads": (lambda: with_changed_blocks("pe", num_kv_groups=5), "heads share keys and values"),
    "halves": (lambda: with_changed_blocks("pe", rotate_half=True), "turn halves"),
    "other pool": (lambda: with_another_part("siglip", "attn_pool", nn.Identity()), "pooling of class Identity"),
    "attentional pool": (lambda: build("openai", attentional_pool=True), "attentional pooling"),
    "two of them": (lambda: build("openai", attentional_pool="parallel"), "attentional pooling"),
    "no pool": (lambda: build("openai", pool_type="none"), "pooling of type 'none'"),
    "other blocks": (lambda: build("openai", qk_norm=True), "CustomResidualAttentionBlock"),
    "half precision": (lambda: build("openai").half(), "float16"),
    "CoCa": (coca, "CoCa"),
    "no CLIP": (lambda: nn.Linear(2, 2), "Linear"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_towers_are_refused_by_name(case: str) -> None:
    make, complaint = REFUSED[case]
    model = make()
    with pytest.raises(UnsupportedModelError, match=f"image tower cannot carry prompts: .*{complaint}") as refusal:
        ImageTower.from_clip(model)
    assert "supported: open_clip's own VisionTransformer" in str(refusal.value)
    obstacle = image_obstacle(model)
    assert obstacle is not None and f"it has {obstacle};" in str(refusal.value)
    assert "text tower" in refusal.value.hint
