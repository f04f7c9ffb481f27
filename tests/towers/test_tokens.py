"""Names become the tokens of the whole text's end, once each, and lie end to end with every index right."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tower_reference import CONTEXT, NAMES, TEMPLATES, tokenizer

from teachonce.data.spelling import spoken
from teachonce.errors import UsageError
from teachonce.towers.packing import pack
from teachonce.towers.structures import Position
from teachonce.towers.text_coder import TextCoder
from teachonce.towers.tokens import NameTokens, encode_text, tokenise_names

EOT = 49407
PIECES = (
    *(
        "fish",
        "Fish",
        " ",
        "\u2003",
        "&",
        "&amp;",
        "&amp;amp;",
        "caf\u00e9",
        "cafe\u0301",
        "caf\u00c3\u00a9",
        "-",
        "1",
        "12",
    ),
    *("\u2019s", "'s", "'S", "\u00b2", "\ufb01sh", "\u0130", "\uff21", "\u732b", ",", "_", "<b>", "\x1b[1m", "\ufffd"),
)
SOME = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4)


def tokenised(names: list[str], suffix: str = ".", position: Position = "before") -> NameTokens:
    return tokenise_names(TextCoder.of(tokenizer()), names, suffix, position)


def ids_of(tokens: NameTokens, distinct: int) -> list[int]:
    ids: list[int] = tokens.ids[tokens.offsets[distinct] : tokens.offsets[distinct + 1]].tolist()
    return ids


def test_names_that_sound_alike_are_kept_once() -> None:
    tokens = tokenised(["Tench", "shark", "tench", " tench", "SHARK"])
    assert tokens.count == 2 and tokens.inverse.tolist() == [0, 1, 0, 0, 1]
    assert tokens.expand(torch.tensor([[1.0], [2.0]])).flatten().tolist() == [1, 2, 1, 1, 2]


@settings(deadline=None, max_examples=150)
@given(SOME, SOME)
def test_two_names_are_spoken_alike_where_their_tokens_are_equal(one: list[str], other: list[str]) -> None:
    """Ties are counted by `spoken`, long before a tokenizer is loaded: both must say the same of any two names."""
    first, second = "".join(one), "".join(other)
    encode = tokenizer().encode
    assert (spoken(first) == spoken(second)) == (encode(first) == encode(second)), (first, second)


@pytest.mark.parametrize("suffix", [".", "", ", a type of food.", "!"])
def test_before_a_name_the_slots_leave_the_end_of_the_template(suffix: str) -> None:
    tokens = tokenised(NAMES, suffix)
    for name, which in zip(NAMES, tokens.inverse.tolist(), strict=True):
        whole = [*tokenizer().encode(f"{CONTEXT} {name}{suffix}"), EOT]
        assert tokenizer().encode(CONTEXT) + ids_of(tokens, which) == whole, name


@pytest.mark.parametrize("position", ["around", "after"])
def test_elsewhere_the_slots_split_the_template_in_two_or_three(position: Position) -> None:
    tokens, words = tokenised(NAMES, ".", position), tokenizer().encode(CONTEXT)
    front = tokens.front(4)
    assert front == {"around": 2, "after": 0}[position] and tokens.front(5) == front and tokens.front(1) == 0
    for name, which in zip(NAMES, tokens.inverse.tolist(), strict=True):
        ids = ids_of(tokens, which)
        ours = [*words[:front], *ids[: -tokens.tail], *words[front:], *ids[-tokens.tail :]]
        assert ours == [*tokenizer().encode(TEMPLATES[position].replace("{}", name)), EOT], name


@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize("chunk", [None, [4, 0, 3], [2]])
def test_rows_lie_end_to_end_by_rising_length(position: Position, chunk: list[int] | None) -> None:
    """Against lists built name by name, with slots written as -1, -2, ..."""
    names = ["great white shark", "tench", "o'clock", "ice cream (vanilla)", "shark", "dog"]
    tokens, slots = tokenised(names, position=position), 5
    wanted = list(range(6)) if chunk is None else chunk
    packed = pack(tokens, None if chunk is None else torch.tensor(chunk), slots, torch.device("cpu"))
    order = sorted(wanted, key=lambda i: int(tokens.lengths[i]))
    assert [order[place] for place in packed.place.tolist()] == wanted
    front, rows, positions, own_rows = tokens.front(slots), [], [], []
    for i in order:
        ids = ids_of(tokens, i)
        head = len(ids) - tokens.tail
        behind = [-1 - slot for slot in range(front, slots)]
        rows += ids[:head] + behind + ids[head:]
        positions += range(1 + front, 1 + front + len(ids) + len(behind))
        own_rows += ids
    assert packed.ids.tolist() == own_rows
    assert packed.positions.tolist() == [p for p, row in zip(positions, rows, strict=True) if row >= 0]
    assert [own_rows[end] for end in packed.layout.ends.tolist()] == [EOT] * len(order)
    if packed.back is None:
        assert position == "before"
        return
    numbers = [*own_rows, *[-1 - slot for slot in range(front, slots)] * len(order)]
    assert [numbers[source] for source in packed.back.source.tolist()] == rows
    assert packed.back.positions.flatten().tolist() == [p for p, x in zip(positions, rows, strict=True) if x < 0]
    assert [rows[row] for row in packed.back.rows[0].tolist()] == [-1 - slot for slot in range(front, slots)]
    assert [rows[end] for end in packed.back.layout.ends.tolist()] == [EOT] * len(order)
    seen = [x for x, hidden in zip(own_rows, packed.back.unseen.flatten().tolist(), strict=True) if not hidden]
    assert seen == [269, EOT] * len(order), "only full stop and EOT come after the slots"


def test_groups_cover_all_rows_and_look_back_only() -> None:
    tokens = tokenised(["dog", "shark", "great white shark", "o'clock", "ice cream"])
    layout = pack(tokens, None, 4, torch.device("cpu")).layout
    name = row = 0
    for group in layout.groups:
        length = (group.rows.stop - group.rows.start) // group.count
        assert (group.names.start, group.rows.start) == (name, row)
        assert torch.equal(group.mask == 0, torch.ones(length, length).tril().bool())
        name, row = group.names.stop, group.rows.stop
    assert (name, row) == (5, len(tokens.ids)) and len(layout.groups) < 5


@pytest.mark.parametrize("position", get_args(Position))
@pytest.mark.parametrize("name", ["", "   ", "\t", "\x00"])
def test_empty_names_are_refused(name: str, position: Position) -> None:
    for suffix in (".", ""):
        with pytest.raises(UsageError, match="class name 1 .*empty"):
            tokenised(["tench", name], suffix, position)


def test_names_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(UsageError, match="no class names"):
        tokenised([])
    with pytest.raises(UsageError, match="class name 0 .*special token"):
        tokenised(["fish <end_of_text> tail"])
    for position in get_args(Position):
        with pytest.raises(UsageError, match="the ending ' <end_of_text>' holds a special token"):
            tokenised(["fish"], " <end_of_text>", position)
    with pytest.raises(UsageError, match="the context ' ' is empty"):
        encode_text(TextCoder.of(tokenizer()), " ", "the context ' '")


def test_a_name_that_does_not_fit_is_named_with_the_room_there_is() -> None:
    tokens = tokenised(["tench", "fish fish", "fish fish", "fish " * 8])
    tokens.check_fits(4, 5 + 10)
    with pytest.raises(UsageError, match="class name 3 .*10 tokens.*4 slots.*room for 9"):
        tokens.check_fits(4, 5 + 9)
