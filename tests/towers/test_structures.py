"""Each structure has exactly the tensors that can learn, and their number is known before anything is made."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import get_args

import pytest

from teachonce.errors import UsageError
from teachonce.towers.structures import Structure, allocate

M, D = 16, 512  # a ViT-B/16's text tower has 12 blocks of width 512


def blocks(structure: Structure, layers: int, depth: int) -> dict[str, list[int]]:
    """The blocks of every letter, by its initial."""
    return {letter[0]: list(where) for letter, where in allocate(structure, layers, depth).blocks.items()}


def test_the_names_are_five_structures_and_every_other_set_of_letters() -> None:
    sets = ["".join(x) for size in range(1, 5) for x in itertools.combinations("qkvr", size)]
    others = {"shared", "unshared", "unshared-replace", "shared-replace", "accumulate"}
    assert set(get_args(Structure)) == {*others, *sets} - {"qkv"}


def test_carried_letters_are_in_the_first_blocks_but_nothing_reads_the_last_blocks_query_and_residual() -> None:
    first, all_but_last, every = [0, 1], [0, 1, 2], [0, 1, 2, 3]
    assert blocks("shared", 4, 3) == {}
    assert blocks("unshared", 4, 2) == {"q": first, "k": first, "v": first}
    assert blocks("unshared", 4, 0) == blocks("unshared", 4, 4) == {"q": all_but_last, "k": every, "v": every}
    assert blocks("qkvr", 4, 0) == {"q": all_but_last, "k": every, "v": every, "r": all_but_last}
    assert blocks("kr", 4, 2) == {"k": first, "r": first}
    assert blocks("qr", 1, 0) == {}
    assert all(allocate(x, 4, 0).context and not allocate(x, 4, 0).replace for x in ("shared", "unshared", "q", "r"))


def test_replacing_has_a_query_and_a_residual_only_where_the_slot_goes_on() -> None:
    assert (
        blocks("unshared-replace", 4, 0) == blocks("unshared-replace", 4, 4) == {"k": [0, 1, 2, 3], "v": [0, 1, 2, 3]}
    )
    assert blocks("unshared-replace", 4, 3) == {"q": [2], "k": [0, 1, 2], "v": [0, 1, 2], "r": [2]}
    assert blocks("unshared-replace", 4, 1) == {"q": [0], "k": [0], "v": [0], "r": [0]}
    assert blocks("unshared-replace", 1, 1) == {"k": [0], "v": [0]}
    assert allocate("unshared-replace", 4, 0).replace and not allocate("unshared-replace", 4, 0).context


@pytest.mark.parametrize(
    ("structure", "depth", "expected"),
    [
        ("shared", 0, 8_192),  # 16 x 512
        ("unshared", 0, 294_912),  # (1 + 11 + 12 + 12) x 8192
        ("unshared", 9, 229_376),  # (1 + 9 + 9 + 9) x 8192
        ("shared-replace", 0, 98_304),  # 12 x 8192
        ("shared-replace", 9, 73_728),  # 9 x 8192
        ("unshared-replace", 0, 196_608),  # (12 + 12) x 8192
        ("unshared-replace", 9, 163_840),  # (9 + 9 + 1 + 1) x 8192
        ("kv", 0, 204_800),  # (1 + 12 + 12) x 8192
        ("q", 0, 98_304),  # (1 + 11) x 8192
        ("qkvr", 0, 385_024),  # (1 + 11 + 12 + 12 + 11) x 8192
        ("r", 12, 98_304),  # (1 + 11) x 8192
    ],
)
def test_the_number_of_parameters(structure: Structure, depth: int, expected: int) -> None:
    assert allocate(structure, 12, depth).parameters(M, D) == expected


@pytest.mark.parametrize("structure", get_args(Structure))
def test_a_depth_beyond_the_tower_is_refused(structure: Structure) -> None:
    for depth in (-1, 5):
        with pytest.raises(UsageError, match=f"depth {depth} .*4 blocks") as problem:
            allocate(structure, 4, depth)
        assert "0 to 4" in problem.value.hint


def test_naming_the_structures_loads_no_torch() -> None:
    code = "import sys, teachonce.towers.structures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
