"""The fast text tower equals open_clip and a plain reference, in outputs and in every gradient; others are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from torch import Tensor, nn
from tower_reference import CONTEXT, NAMES, TOWERS, VISION, full_tokens, plain_features, tiny_clip, tokenizer

from teachonce.errors import TeachOnceError, UnsupportedModelError, UsageError
from teachonce.text_tower import SlotPrompts, TextTower

MODELS = Path(__file__).parents[3] / "shared" / "models"
KINDS = sorted(TOWERS)


def fitting(tower: TextTower, names: list[str]) -> list[str]:
    """The names that the tower has room for behind four slots."""
    return [name for name in names if len(tokenizer().encode(name + ".")) + 6 <= tower.context_length]


def random_prompts(tower: TextTower, depth: int, seed: int = 0) -> SlotPrompts:
    """Prompts of a size that matters in `depth` blocks; depth 0 has the context only."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return (0.5 * torch.randn(*shape, generator=generator)).requires_grad_()

    context = (tower.embed_words(CONTEXT) + leaf(4, tower.width)).detach().requires_grad_()
    if depth == 0:
        return SlotPrompts(context)
    queries = min(depth, tower.layers - 1)
    letters = [leaf(layers, 4, tower.width) if layers else None for layers in (queries, depth, depth)]
    return SlotPrompts(context, *letters)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hand_written_context_equals_encode_text(kind: str) -> None:
    model = tiny_clip(kind)
    tower = TextTower.from_clip(model, tokenizer())
    names = fitting(tower, NAMES)
    with torch.no_grad():
        ours = tower.features(SlotPrompts(tower.embed_words(CONTEXT)), tower.tokenise(names))
        theirs = model.encode_text(full_tokens(model, names), normalize=True)  # type: ignore[operator]
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    similarity = (theirs @ theirs.T)[~torch.eye(len(names), dtype=torch.bool)]
    assert similarity.mean() < 0.9, "the weights are too small for this test to tell names apart"


@pytest.mark.shared
@pytest.mark.skipif(not MODELS.is_dir(), reason="the real models are not beside the checkout")
@pytest.mark.parametrize("name", ["tin-student", "tin-teacher"])
def test_real_models_equal_encode_text(name: str) -> None:
    from teachonce.clip_models import load_clip

    clip = load_clip(f"local-dir:{MODELS / name}")
    tower = TextTower.from_clip(clip.model, clip.tokenizer)
    with torch.no_grad():
        ours = tower.features(SlotPrompts(tower.embed_words(CONTEXT)), tower.tokenise(NAMES))
        theirs = clip.model.encode_text(full_tokens(clip.model, NAMES), normalize=True)  # type: ignore[operator]
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["shared", "first", "half", "all"])
def test_features_and_gradients_equal_the_plain_reference(kind: str, part: str) -> None:
    model = tiny_clip(kind)
    tower = TextTower.from_clip(model, tokenizer())
    names = fitting(tower, NAMES)[::2]
    depth = {"shared": 0, "first": 1, "half": max(1, tower.layers // 2), "all": tower.layers}[part]
    prompts = random_prompts(tower, depth)
    leaves = [x for x in vars(prompts).values() if x is not None]
    ours = tower.features(prompts, tower.tokenise(names))
    theirs = plain_features(model, prompts, names)
    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    found = torch.autograd.grad((ours * direction).sum(), leaves)
    expected = torch.autograd.grad((theirs * direction).sum(), leaves)
    for mine, reference in zip(found, expected, strict=True):
        assert reference.norm() > 1e-3
        assert (mine - reference).norm() <= 1e-5 * reference.norm()


def test_a_query_prompt_in_the_last_block_would_be_dead() -> None:
    model = tiny_clip("openai")
    tower = TextTower.from_clip(model, tokenizer())
    full = random_prompts(tower, tower.layers)
    query = torch.zeros(tower.layers, 4, tower.width, requires_grad=True)
    features = plain_features(model, SlotPrompts(full.context, query, full.key, full.value), NAMES[:5])
    (gradient,) = torch.autograd.grad(features[:, 0].sum(), query)
    assert (gradient[:-1].norm(dim=2) > 0).all() and not gradient[-1].any()
    with pytest.raises(TeachOnceError, match="do not fit"):
        tower.features(SlotPrompts(full.context, query), tower.tokenise(["tench"]))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_prompts_change_no_bit(kind: str) -> None:
    tower = TextTower.from_clip(tiny_clip(kind), tokenizer())
    tokens = tower.tokenise(fitting(tower, NAMES))
    context = random_prompts(tower, 0).context.detach()
    shared = tower.features(SlotPrompts(context), tokens)
    for depth in range(1, tower.layers + 1):
        zeros = [
            torch.zeros(n, 4, tower.width) if n else None for n in (min(depth, tower.layers - 1), depth, depth)
        ]  # fmt: skip
        assert torch.equal(tower.features(SlotPrompts(context, *zeros), tokens), shared)


def test_chunks_and_company_do_not_matter() -> None:
    tower = TextTower.from_clip(tiny_clip("laion"), tokenizer())
    prompts, tokens = random_prompts(tower, 2), tower.tokenise(NAMES)
    whole = tower.features(prompts, tokens).detach()
    for chunk in (torch.tensor([3]), torch.tensor([5, 0, 17]), torch.arange(len(NAMES)).flip(0)):
        part = tower.features(prompts, tokens, chunk).detach()
        assert torch.allclose(part, whole[chunk], rtol=0, atol=1e-6)


def test_names_that_sound_alike_are_encoded_once() -> None:
    tower = TextTower.from_clip(tiny_clip("openai"), tokenizer())
    tokens = tower.tokenise(["Tench", "shark", "tench", " tench", "SHARK"])
    assert tokens.count == 2 and tokens.inverse.tolist() == [0, 1, 0, 0, 1]
    features = tokens.expand(tower.features(SlotPrompts(tower.embed_words(CONTEXT)), tokens))
    assert len(features) == 5 and torch.equal(features[0], features[3]) and not torch.equal(features[0], features[1])


@pytest.mark.parametrize("suffix", [".", "", ", a type of food.", "!"])
def test_name_tokens_are_the_end_of_the_template_tokens(suffix: str) -> None:
    tower = TextTower.from_clip(tiny_clip("openai"), tokenizer())
    tokens = tower.tokenise(NAMES, suffix=suffix)
    start = tokenizer().encode(CONTEXT)
    for name, which in zip(NAMES, tokens.inverse.tolist(), strict=True):
        ids = tokens.ids[tokens.offsets[which] : tokens.offsets[which + 1]].tolist()
        assert start + ids == [*tokenizer().encode(f"{CONTEXT} {name}{suffix}"), 49407], name
    assert len(tower.embed_words(CONTEXT)) == len(start) == 4


def test_the_longest_name_that_fits_is_right_and_one_token_more_is_refused() -> None:
    model = tiny_clip("short")  # 24 tokens: SOS, 4 slots, 17 words and a full stop, EOT
    tower = TextTower.from_clip(model, tokenizer())
    prompts = SlotPrompts(tower.embed_words(CONTEXT))
    longest, longer = " ".join(["fish"] * 17), " ".join(["fish"] * 18)
    features = tower.features(prompts, tower.tokenise(["tench", longest]))
    theirs = model.encode_text(full_tokens(model, ["tench", longest]), normalize=True)  # type: ignore[operator]
    assert torch.allclose(features, theirs, rtol=0, atol=1e-5)
    names = ["tench", longest, longest, longer, "shark"]
    with pytest.raises(UsageError, match="class name 3 .*20 tokens.*4 slots.*room for 19"):
        tower.features(prompts, tower.tokenise(names))
    with pytest.raises(UsageError, match="class name 3 "):
        tower.tokenise(names, slots=4)
    with pytest.raises(UsageError, match="class name 1 "):
        tower.tokenise(["tench", "fish " * 200])


@pytest.mark.parametrize("name", ["", "   ", "\t", "\x00"])
def test_empty_names_are_refused(name: str) -> None:
    tower = TextTower.from_clip(tiny_clip("openai"), tokenizer())
    for suffix in (".", ""):
        with pytest.raises(UsageError, match="class name 1 .*empty"):
            tower.tokenise(["tench", name], suffix=suffix)


def test_other_unusable_texts_are_refused() -> None:
    tower = TextTower.from_clip(tiny_clip("openai"), tokenizer())
    with pytest.raises(UsageError, match="no class names"):
        tower.tokenise([])
    with pytest.raises(UsageError, match="class name 0 .*special token"):
        tower.tokenise(["fish <end_of_text> tail"])
    with pytest.raises(UsageError, match="context ' ' is empty"):
        tower.embed_words(" ")
    with pytest.raises(UsageError, match="of the text tower's 77 tokens"):
        tower.slot_scales("word " * 75)


def test_slot_states_are_the_blocks_inputs() -> None:
    model = tiny_clip("laion")
    tower = TextTower.from_clip(model, tokenizer())
    seen: list[Tensor] = []
    for block in model.transformer.resblocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.encode_text(full_tokens(model, ["tench"]))  # type: ignore[operator]
    expected = torch.stack([x[0, 1:5] for x in seen])
    assert torch.allclose(tower.slot_states(CONTEXT), expected, atol=1e-5)
    centred = expected - expected.mean(2, keepdim=True)
    assert torch.allclose(tower.slot_scales(CONTEXT), (centred**2).mean((1, 2)) ** 0.5, rtol=1e-4)


def test_the_tower_is_frozen_and_shares_the_models_weights() -> None:
    model = tiny_clip("custom_text")
    tower = TextTower.from_clip(model, tokenizer())
    text = model.text
    assert isinstance(text, nn.Module) and not any(x.requires_grad for x in text.parameters())
    assert tower.token_embedding is text.token_embedding and tower.blocks[0] is text.transformer.resblocks[0]


def custom(**text: object) -> nn.Module:
    """A CustomTextCLIP with an unsupported text config."""
    config = {"width": 32, "heads": 2, "layers": 1, **text}
    model: nn.Module = open_clip.CustomTextCLIP(16, dict(VISION), config)
    return model


def not_causal() -> nn.Module:
    """A CLIP whose mask lets every position see one more."""
    model = tiny_clip("openai")
    model.attn_mask = torch.full((77, 77), -torch.inf).triu(2)
    return model


def hugging_face() -> nn.Module:
    """A CustomTextCLIP whose text part is of another class, as with Hugging Face towers."""
    model = custom()
    model.text = type("HFTextEncoder", (nn.Module,), {})()
    return model


def coca() -> nn.Module:
    """open_clip's captioner."""
    text = {"width": 32, "heads": 2, "layers": 1, "embed_cls": True, "output_tokens": True}
    captions = {"width": 32, "heads": 2, "layers": 1}
    model: nn.Module = open_clip.CoCa(16, captions, text, {**VISION, "attentional_pool": True, "output_tokens": True})
    return model


REFUSED = {
    "no mask": (lambda: custom(no_causal_mask=True), "no causal mask"),
    "no mask in CLIP": (lambda: open_clip.CLIP(16, dict(VISION), {"width": 32, "heads": 2, "layers": 1,
                                                                 "no_causal_mask": True}), "no causal mask"),
    "wrong mask": (not_causal, "no causal mask"),
    "class token": (lambda: custom(embed_cls=True), "cls_emb"),
    "CoCa": (coca, "CoCa"),
    "Hugging Face": (hugging_face, "HFTextEncoder"),
    "pool last": (lambda: custom(pool_type="last"), "pooling of type 'last'"),
    "eos of another tokenizer": (lambda: custom(pool_type="eos", eos_id=2), "pooling at token 2 .*49407"),
    "other blocks": (lambda: custom(qk_norm=True), "CustomResidualAttentionBlock"),
    "half precision": (lambda: custom().half(), "float16"),
    "no CLIP": (lambda: nn.Linear(2, 2), "Linear"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_towers_are_refused_by_name(case: str) -> None:
    build, found = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=found) as refusal:
        TextTower.from_clip(build(), tokenizer())
    assert "supported: causal CLIP" in str(refusal.value)


def test_other_tokenizers_are_refused() -> None:
    model = tiny_clip("openai")
    for other in (
        SimpleNamespace(encode=len),
        SimpleNamespace(sot_token_id=1, eot_token_id=2),
        SimpleNamespace(encode=len, sot_token_id=1, eot_token_id=10**6),
        SimpleNamespace(encode=len, sot_token_id=2, eot_token_id=1),
    ):
        with pytest.raises(UnsupportedModelError, match="tokenizer of class SimpleNamespace"):
            TextTower.from_clip(model, other)
