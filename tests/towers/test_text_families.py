"""Every family of text towers gives open_clip's features, exact gradients, and trains only what can learn.

One contract holds for both implementations, the causal one and the one that runs every position.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from family_reference import family_features, family_run
from text_families import CAUSAL, FAMILIES, family_clip
from torch import Tensor, nn
from tower_reference import CONTEXT, TEMPLATES, random_prompts

from teachonce.errors import UnsupportedModelError, UsageError
from teachonce.towers.causal_text import CausalText
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Letter, Position, Structure, allocate
from teachonce.towers.text_tower import TextTower, text_obstacle
from teachonce.towers.whole_text import WholeText
from teachonce.training.two_pass import TextPass

POSITIONS: tuple[Position, ...] = get_args(Position)
NAMES = ["shark", "great white shark", "Red Fox", "jack-o'-lantern", "red fox", "ice cream!", "\u732b", "blue jay"]
each_family = pytest.mark.parametrize("family", FAMILIES)
each_position = pytest.mark.parametrize("position", POSITIONS)


def made(family: str, double: bool = False) -> tuple[nn.Module, Any, TextTower]:
    """A model, its tokenizer and its tower."""
    model, tokenizer = family_clip(family, double)
    return model, tokenizer, TextTower.from_clip(model, tokenizer)


def gradients(features: Tensor, prompts: SlotPrompts) -> dict[str, Tensor]:
    """Of a fixed random direction, for every tensor of the prompts; zero where nothing reaches it."""
    direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = prompts.tensors()
    parts = torch.autograd.grad((features * direction.to(features.dtype)).sum(), list(leaves.values()))
    return dict(zip(leaves, parts, strict=True))


@each_family
def test_each_family_has_the_implementation_that_its_mask_asks_for(family: str) -> None:
    model, _, tower = made(family)
    assert isinstance(tower.run, CausalText if family in CAUSAL else WholeText)
    assert tower.shares_slot_states == (family in CAUSAL)
    assert text_obstacle(model) is None


@each_position
@each_family
def test_the_hand_written_context_equals_encode_text(family: str, position: Position) -> None:
    for double, bound in ((False, 1e-5), (True, 1e-10)):
        model, tokenizer, tower = made(family, double)
        prompts = SlotPrompts(tower.embed_words(CONTEXT, position))
        names = tower.tokenise(NAMES, slots=4, position=position)
        tokens = tokenizer([TEMPLATES[position].replace("{}", name) for name in NAMES])
        with torch.no_grad():
            ours = names.expand(tower.features(prompts, names))
            theirs = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
        assert prompts.slots == 4
        assert (ours - theirs).abs().max() <= bound
        assert (theirs @ theirs.T).mean() < 0.98, "the weights are too small for this test to tell names apart"


@each_family
def test_features_and_gradients_equal_a_reference_that_runs_every_position(family: str) -> None:
    model, tokenizer, tower = made(family, double=True)
    structures: tuple[Structure, ...] = ("shared", "unshared", "qkvr", "unshared-replace")
    cases = [(s, d, p) for s in structures for d, p in zip((0, 1, 2), POSITIONS, strict=True)]
    if not tower.shares_slot_states:
        cases.append(("accumulate", 0, "before"))
    for structure, depth, position in cases:
        prompts = random_prompts(tower, structure, depth)
        names = tower.tokenise(NAMES, slots=4, position=position)
        ours = names.expand(tower.features(prompts, names))
        theirs = family_features(model, tokenizer, prompts, NAMES, position)
        assert (ours - theirs).abs().max() <= 1e-10, (structure, depth, position)
        actual, expected = gradients(ours, prompts), gradients(theirs, prompts)
        for name, reference in expected.items():
            by_block = reference.flatten(-2) if reference.ndim == 3 else reference.flatten()[None]
            mine = actual[name].view_as(by_block)
            assert (by_block.norm(dim=-1) > 1e-5).all(), f"{name}: too small a gradient to compare"
            assert ((mine - by_block).norm(dim=-1) <= 1e-9 * by_block.norm(dim=-1)).all(), (name, structure, position)


@each_family
def test_every_tensor_of_every_structure_learns_in_every_slot_and_no_other_could(family: str) -> None:
    """All letters of all blocks are put into the reference; those with a gradient are exactly the allocated ones.

    So the query under replacement, too, is alive where the slot goes on, and nowhere else, with a mask or without. One
    row of one tensor is dead: where texts have no start token, the first slot of a causal tower sees nothing but
    itself, whatever it asks for.
    """
    model, tokenizer, tower = made(family, double=True)
    generator = torch.Generator().manual_seed(5)
    sees_only_itself = family in CAUSAL and not tower.coder.start

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    for structure, depth in (("qkvr", 3), ("qkvr", 1), ("unshared-replace", 3), ("unshared-replace", 2)):
        allocation = allocate(structure, tower.layers, depth)  # type: ignore[arg-type]
        context = leaf(4, tower.width)
        stacks: dict[Letter, Tensor] = {x: leaf(depth, 4, tower.width) for x in get_args(Letter)}
        letters: dict[str, dict[int, Tensor]] = {x: dict(enumerate(stack)) for x, stack in stacks.items()}
        features = family_run(model, tokenizer, context, letters, allocation.replace, NAMES)
        by_name = gradients(features, SlotPrompts(context, **stacks))  # type: ignore[arg-type]
        assert bool(by_name["context"].any()) == allocation.context
        for letter in get_args(Letter):
            for block, of_slots in enumerate(by_name[letter]):
                live = [block in allocation.blocks.get(letter, ())] * 4
                if sees_only_itself and letter == "query":
                    live[0] = False
                assert of_slots.any(-1).tolist() == live, (structure, depth, letter, block)


@each_family
def test_chunks_and_company_do_not_matter_and_equal_names_are_run_once(family: str) -> None:
    _, _, tower = made(family)
    for structure, position in (("qkvr", "before"), ("unshared-replace", "around")):
        prompts = random_prompts(tower, structure, 2)  # type: ignore[arg-type]
        tokens = tower.tokenise(NAMES, slots=4, position=position)  # type: ignore[arg-type]
        whole = tower.features(prompts, tokens).detach()
        assert len(whole) == tokens.count
        for chunk in (torch.tensor([3]), torch.tensor([5, 0]), torch.arange(tokens.count).flip(0)):
            part = tower.features(prompts, tokens, chunk).detach()
            assert torch.allclose(part, whole[chunk], rtol=0, atol=1e-6)
    alike = tower.tokenise(["blue jay", "blue  jay", "shark", "blue jay"])
    assert alike.count == 2 and alike.inverse.tolist() == [0, 0, 1, 0]


@each_family
def test_zero_letters_change_no_bit_and_half_precision_stays_close(family: str) -> None:
    _, _, tower = made(family)
    tokens = tower.tokenise(NAMES)
    context = random_prompts(tower, "shared", 0).context
    shared = tower.features(SlotPrompts(context), tokens)
    letters = random_prompts(tower, "qkvr", 0).apply(torch.zeros_like).tensors()
    assert torch.equal(tower.features(SlotPrompts(**{**letters, "context": context}), tokens), shared)  # type: ignore[arg-type]
    prompts = random_prompts(tower, "unshared-replace", 2)
    exact = tower.features(prompts, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = tower.features(prompts, tokens)
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).abs().max() < 0.1


@each_family
def test_names_that_do_not_fit_or_hold_nothing_are_refused_by_number(family: str) -> None:
    model, tokenizer, tower = made(family)
    room = tower.context_length
    with pytest.raises(UsageError, match=r"class name 1 .*room for"):
        tower.tokenise(["shark", "shark " * room], slots=4)
    with pytest.raises(UsageError, match="class name 1 .*is empty"):
        tower.tokenise(["shark", "  "])
    with pytest.raises(UsageError, match="is empty"):
        tower.embed_words(" ")
    with pytest.raises(UsageError, match=f"of the text tower's {room} tokens"):
        tower.embed_words("a " * room)
    most = tower.embed_words("a " * tower.most_slots)
    names = tower.tokenise(["shark"], "", slots=tower.most_slots)
    theirs = model.encode_text(tokenizer(["a " * tower.most_slots + "shark"]), normalize=True)  # type: ignore[operator]
    assert (tower.features(SlotPrompts(most), names) - theirs).abs().max() <= 1e-5


@each_family
def test_slot_states_are_the_blocks_inputs(family: str) -> None:
    """In towers without a mask, those of a text without a name."""
    model, tokenizer, tower = made(family)
    seen: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])) for b in tower.parts.blocks]
    with torch.no_grad():
        model.encode_text(tokenizer([CONTEXT]))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    first = len(tower.coder.start)
    expected = torch.stack([x[0, first : first + 4] for x in seen])
    assert torch.allclose(tower.slot_states(CONTEXT), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["first", "siglip2", "metaclip2-mt5"])
def test_gradients_by_chunks_of_names_are_the_one_shot_gradient(family: str) -> None:
    """The two passes of a step, with several candidates of one name."""
    _, _, tower = made(family, double=True)
    names = tower.tokenise(NAMES, slots=4)
    prompts = random_prompts(tower, "unshared-replace", 2)
    leaves = list(prompts.tensors().values())
    candidates = torch.tensor([4, 0, 2, 7, 5, 1])
    direction = torch.randn(6, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def pulled(class_chunk: int) -> list[Tensor]:
        step = TextPass(tower, lambda: prompts, names, candidates, class_chunk)
        (gradient,) = torch.autograd.grad((step.features[step.place] * direction).sum(), [step.features])
        return step.pull_back(leaves, [gradient])[0]

    whole = torch.autograd.grad((names.expand(tower.features(prompts, names))[candidates] * direction).sum(), leaves)
    for class_chunk in (100, 2, 1):
        for part, expected in zip(pulled(class_chunk), whole, strict=True):
            assert torch.allclose(part, expected, rtol=1e-9, atol=1e-12)


def test_without_a_mask_the_last_block_runs_pooled_positions_only_and_replaced_slots_have_no_state() -> None:
    """Counted in rows through the blocks' MLPs, which every state passes."""
    _, _, tower = made("first")  # 20 positions
    rows: list[int] = []
    hooks = [
        block.mlp.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[:-1].numel()))
        for block in tower.parts.blocks
    ]
    names = tower.tokenise(["shark", "fox", "Shark"])

    def counted(structure: Structure, depth: int) -> list[int]:
        rows.clear()
        tower.features(random_prompts(tower, structure, depth), names)
        return rows.copy()

    assert counted("unshared", 0) == [40, 40, 2]
    assert counted("unshared-replace", 0) == [32, 32, 2]
    assert counted("unshared-replace", 2) == [32, 40, 2]  # a slot goes on from the second block
    for hook in hooks:
        hook.remove()


def test_a_class_token_with_the_mask_that_was_meant_is_exact_too() -> None:
    """Released CoCas have a mask that is one position off; open_clip can build the other one."""
    model, tokenizer = family_clip("coca", context_length=40)
    model.text.correct_cls_mask = True  # type: ignore[union-attr]
    tower = TextTower.from_clip(model, tokenizer)
    names = tower.tokenise(NAMES)
    tokens = tokenizer([f"{CONTEXT} {name}." for name in NAMES])
    with torch.no_grad():
        ours = names.expand(tower.features(SlotPrompts(tower.embed_words(CONTEXT)), names))
        theirs = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
    assert (ours - theirs).abs().max() <= 1e-5


def test_words_that_a_class_tokens_mask_would_take_for_padding_are_refused() -> None:
    _, tokenizer, tower = made("coca")
    assert 0 in tokenizer.encode("!~")
    with pytest.raises(UsageError, match="class name 0 .*special token"):
        tower.tokenise(["!~"])


def test_tokenizers_that_do_not_go_with_the_tower_are_refused() -> None:
    siglip, words = family_clip("siglip")
    mobile, clips = family_clip("mobileclip")
    with pytest.raises(UnsupportedModelError, match="too short for the tokenizer"):
        TextTower.from_clip(siglip, clips)
    with pytest.raises(UnsupportedModelError, match="pooling at the highest token"):
        TextTower.from_clip(mobile, words)
    starts_with_words, _ = family_clip("first")
    with pytest.raises(UnsupportedModelError, match="no start token there"):
        TextTower.from_clip(starts_with_words, words)
    worldwide, _ = family_clip("metaclip2-xlm")
    with pytest.raises(UnsupportedModelError, match="pooling at token 2 where the tokenizer ends texts with 1"):
        TextTower.from_clip(worldwide, words)


def test_what_is_in_the_way_is_said_without_weights_and_without_a_tokenizer() -> None:
    model, _ = family_clip("metaclip2-xlm")
    assert text_obstacle(model.to("meta")) is None  # last: nothing else can use the model after this
    assert text_obstacle(nn.Linear(2, 2)) == "a tower of class Linear"
