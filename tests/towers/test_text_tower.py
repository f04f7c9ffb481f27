"""The fast text tower equals open_clip, computes nothing twice, and refuses towers on which it would be wrong."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import open_clip
import pytest
import torch
from torch import Tensor, nn
from tower_reference import CONTEXT, NAMES, TOWERS, VISION, full_tokens, random_prompts, tiny_clip, tokenizer

from teachonce.errors import TeachOnceError, UnsupportedModelError, UsageError
from teachonce.towers.causal_text import CausalText
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Position, Structure
from teachonce.towers.text_tower import TextTower

MODELS = Path(__file__).parents[3] / "shared" / "models"
KINDS = sorted(TOWERS)


def fitting(tower: TextTower, names: list[str]) -> list[str]:
    """The names that the tower has room for behind four slots."""
    return [name for name in names if len(tokenizer().encode(name + ".")) + 6 <= tower.context_length]


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
    from teachonce.models.clip import load_clip

    clip = load_clip(f"local-dir:{MODELS / name}")
    tower = TextTower.from_clip(clip.model, clip.tokenizer)
    with torch.no_grad():
        ours = tower.features(SlotPrompts(tower.embed_words(CONTEXT)), tower.tokenise(NAMES))
        theirs = clip.model.encode_text(full_tokens(clip.model, NAMES), normalize=True)  # type: ignore[operator]
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def test_chunks_and_company_do_not_matter() -> None:
    tower = TextTower.from_clip(tiny_clip("laion"), tokenizer())
    for structure, position in itertools.product(("qkvr", "unshared-replace"), get_args(Position)):
        prompts, tokens = random_prompts(tower, structure, 2), tower.tokenise(NAMES, position=position)
        whole = tower.features(prompts, tokens).detach()
        for chunk in (torch.tensor([3]), torch.tensor([5, 0, 17]), torch.arange(len(NAMES)).flip(0)):
            part = tower.features(prompts, tokens, chunk).detach()
            assert torch.allclose(part, whole[chunk], rtol=0, atol=1e-6)


def test_no_names_at_all_are_a_bug() -> None:
    tower = TextTower.from_clip(tiny_clip("one_block"), tokenizer())
    with pytest.raises(TeachOnceError, match="no names"):
        tower.features(
            random_prompts(tower, "shared", 0), tower.tokenise(["tench"]), torch.tensor([], dtype=torch.int64)
        )


def test_the_start_token_is_run_once_for_each_precision_and_in_inference_mode_too() -> None:
    tower = TextTower.from_clip(tiny_clip("one_block"), tokenizer())
    tokens, prompts = tower.tokenise(["tench"]), random_prompts(tower, "unshared", 0)
    with torch.inference_mode():
        first = tower.features(prompts, tokens)
    features = tower.features(prompts, tokens)
    features.sum().backward()
    assert torch.equal(first, features) and prompts.key is not None and prompts.key.grad is not None
    assert isinstance(tower.run, CausalText)
    kept = dict(tower.run._start_tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tower.features(prompts, tokens)
        tower.features(prompts, tokens)
    assert len(kept) == 1 and len(tower.run._start_tokens) == 2


def test_prompts_that_replace_every_state_run_no_slot_and_the_last_block_runs_end_tokens_only() -> None:
    """Counted in rows through the blocks' MLPs, which every state passes."""
    model = tiny_clip("laion")
    tower = TextTower.from_clip(model, tokenizer())
    rows: list[int] = []
    for block in tower.parts.blocks:
        block.mlp.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    names = ["shark", "great white shark"]  # with full stop and EOT: 3 and 5 tokens

    def counted(structure: Structure, depth: int, position: Position) -> list[int]:
        prompts, tokens = random_prompts(tower, structure, depth), tower.tokenise(names, position=position)
        tower.features(prompts, tokens)  # runs the start token
        rows.clear()
        tower.features(prompts, tokens)
        return rows.copy()

    assert counted("shared", 0, "before") == [4, 4, 4, 8, 8, 8, 2]
    for position in get_args(Position):
        assert counted("unshared-replace", 0, position) == [8, 8, 8, 2]
    assert counted("unshared-replace", 2, "after") == [8, 16, 16, 2]  # a slot goes on from the second block
    assert counted("unshared", 0, "around") == [2, 2, 2, 12, 12, 12, 2]


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
    assert (
        tower.parts.token_embedding is text.token_embedding and tower.parts.blocks[0] is text.transformer.resblocks[0]
    )


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


def masked_padding() -> nn.Module:
    """A tower without a causal mask that does not look at padding: no configuration asks for it yet."""
    model = custom(no_causal_mask=True)
    model.text.use_pad_mask = True  # type: ignore[union-attr]
    return model


def hugging_face() -> nn.Module:
    """A CustomTextCLIP whose text part is of another class, as with Hugging Face towers."""
    model = custom()
    model.text = type("HFTextEncoder", (nn.Module,), {})()
    return model


REFUSED = {
    "mask over padding": (masked_padding, "use_pad_mask"),
    "class token without a mask": (lambda: custom(no_causal_mask=True, embed_cls=True), "cls_emb"),
    "nothing pooled": (lambda: custom(no_causal_mask=True, pool_type="none"), "pooling of type 'none'"),
    "wrong mask": (not_causal, "a mask that is not the causal one"),
    "Hugging Face": (hugging_face, "HFTextEncoder"),
    "pool last": (lambda: custom(pool_type="last"), "causal mask and pooling of type 'last'"),
    "eos of another tokenizer": (lambda: custom(pool_type="eos", eos_id=2), "pooling at token 2 .*49407"),
    "other blocks": (lambda: custom(qk_norm=True), "CustomResidualAttentionBlock"),
    "half precision": (lambda: custom().half(), "float16"),
    "no CLIP": (lambda: nn.Linear(2, 2), "Linear"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_towers_are_refused_by_name(case: str) -> None:
    build, complaint = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=complaint) as refusal:
        TextTower.from_clip(build(), tokenizer())
    assert "supported: CLIP, CustomTextCLIP and CoCa" in str(refusal.value)


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
