"""Selections: which samples few-shot takes, what the file holds, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from teachonce.core.digests import canonical_digest
from teachonce.core.progress import Silent
from teachonce.errors import DataError, FingerprintError, IntegrityError, TeachOnceError, UsageError
from teachonce.labels.selection import Rule, choose, few_shot, key_hashes, load_selection, save_selection
from teachonce.labels.store import LabelStore

SEED = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    """Forty samples of twelve classes, 4 classes a soft label."""
    made: LabelStore = worlds.synthetic_store(tmp_path_factory.mktemp("selection") / "a.zarr")[0]
    return made


def keyed(key: str, seed: int) -> int:
    """The documented hash of one key."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")


def brute_force(shots: int, seed: int, rows: int = 40, classes: int = 12) -> list[int]:
    """Sample numbers by sorting Python objects, from the index alone."""
    index = worlds.synthetic_index(rows, classes)
    chosen: list[int] = []
    for label in range(classes):
        members = [sample for sample in range(rows) if index.label[sample] == label]
        chosen += sorted(members, key=lambda sample: keyed(index.key(sample), seed))[:shots]
    return sorted(chosen)


def test_hashes_are_the_documented_ones() -> None:
    """BLAKE2b-64 over the UTF-8 key, keyed with the seed; keys of every length, with letters beyond ASCII."""
    index = worlds.synthetic_index(12, 3)
    assert key_hashes(index, SEED).tolist() == [keyed(index.key(i), SEED) for i in range(12)]
    assert key_hashes(index, 2**64 - 1).tolist() != key_hashes(index, SEED).tolist()


@pytest.mark.parametrize("seed", [0, SEED])
@pytest.mark.parametrize("shots", [1, 2, 3, 99])
def test_few_shot_equals_brute_force(shots: int, seed: int, store: LabelStore) -> None:
    """In each class the samples with the smallest hashes, whatever the row order; keys stand beside them."""
    chosen = choose(store, Rule(shots=shots, seed=seed), Silent())
    assert chosen.samples.tolist() == brute_force(shots, seed)
    index = worlds.synthetic_index(40, 12)
    assert list(chosen.keys) == [index.key(sample) for sample in chosen.samples]
    counts = np.bincount(index.label, minlength=12)
    assert dict(chosen.short) == {f"c{c:05d}": int(n) for c, n in enumerate(counts) if n < shots}
    assert chosen.classes == int((counts > 0).sum())


def test_shots_nest(store: LabelStore) -> None:
    """1 shot is part of 2 shots, and so on; another seed is another choice."""
    sets = [set(choose(store, Rule(shots=n, seed=SEED), Silent()).samples.tolist()) for n in range(1, 7)]
    assert all(small < large or small == large for small, large in zip(sets, sets[1:], strict=False))
    assert sets[0] != set(choose(store, Rule(shots=1, seed=SEED + 1), Silent()).samples.tolist())


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_order_of_rows_does_not_matter(labels: list[int], shots: int, seed: int) -> None:
    """The same samples come out of any order; none without a class, none twice, never more than the shots."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, len(labels), dtype=np.uint64)
    array, order = np.array(labels, dtype=np.int32), rng.permutation(len(labels))
    here, there = few_shot(hashes, array, shots), few_shot(hashes[order], array[order], shots)
    assert set(here.tolist()) == set(order[there].tolist()) and len(set(here.tolist())) == len(here)
    counts = np.bincount(array[here], minlength=5) if len(here) else np.zeros(5, np.int64)
    assert counts.tolist() == [min(shots, labels.count(c)) for c in range(5)]


def test_another_row_order_gives_the_same_samples(tmp_path: Path) -> None:
    """Two stores of the same samples whose rows lie in other places and other chunks."""
    first = worlds.synthetic_store(tmp_path / "a.zarr", seed=0)[0]
    second = reordered(tmp_path / "b.zarr")
    assert first.samples(0, 40).tolist() != second.samples(0, 40).tolist()
    rule = Rule(shots=2, seed=SEED)
    one, two = choose(first, rule, Silent()), choose(second, rule, Silent())
    assert one.samples.tolist() == two.samples.tolist() and one.keys == two.keys


def reordered(path: Path) -> Any:
    """The samples of `synthetic_store(seed=0)` in another order, in chunks of 7, without soft labels."""
    from teachonce.labels.create import create_store
    from teachonce.labels.format import LABELS, new_layout
    from teachonce.labels.ledger import key_digest

    index = worlds.synthetic_index(40, 12)
    vocabulary = worlds.synthetic_store(path.with_name("names.zarr"))[0].vocabulary()
    layout = new_layout(40, 12, 0, (), 7)
    fingerprint = {"samples": index.digest, "about": {}}
    made = create_store(
        path, layout, fingerprint, vocabulary, vocabulary, index, np.random.default_rng(1).permutation(40), None
    )
    for chunk in range(layout.chunks):
        start, stop = layout.bounds(chunk)
        part, zeros = made.index_of_chunk(chunk), np.zeros(stop - start, np.uint8)
        data = {
            "label": part.label,
            "sample": made.samples(start, stop),
            "view": zeros,
            "status": zeros,
            "image_crc": zeros.astype(np.uint32),
            "key_digest": key_digest(part),
        }
        made.commit(LABELS, chunk, 7, stop - start, 0, made.write_chunk(LABELS, chunk, data))
    return made


def test_classes_restrict_samples(store: LabelStore) -> None:
    """Only samples of the named classes, with and without shots."""
    index, wanted = worlds.synthetic_index(40, 12), ("c00002", "c00005")
    every = [s for s in range(40) if index.label[s] in (2, 5)]
    assert choose(store, Rule(classes=wanted), Silent()).samples.tolist() == every
    some = choose(store, Rule(classes=wanted, shots=1, seed=SEED), Silent())
    assert some.samples.tolist() == [s for s in brute_force(1, SEED) if s in every]
    assert some.classes == len(set(index.label[every])) and dict(some.short) == {"c00002": 0}
    assert choose(store, Rule(top_k=2), Silent()).samples.tolist() == list(range(40))


def test_a_file_gives_back_what_was_chosen(store: LabelStore, tmp_path: Path) -> None:
    """Every field, through the disk; the digest is the content's; the same choice gives the same bytes."""
    rule = Rule(shots=2, seed=SEED, top_k=3, classes=("c00001", "c00004"))
    chosen = choose(store, rule, Silent())
    digest = save_selection(tmp_path / "a.json", store, rule, chosen)
    loaded = load_selection(tmp_path / "a.json", store)
    assert (loaded.top_k, loaded.classes, loaded.shots, loaded.seed) == (3, ("c00001", "c00004"), 2, SEED)
    assert loaded.samples.dtype == np.uint32 and np.array_equal(loaded.samples, chosen.samples)
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["keys"] == list(chosen.keys) and document["store"]["id"] == store.store_id()
    assert loaded.digest == digest == document.pop("digest") == canonical_digest(document)
    written = (tmp_path / "a.json").stat().st_mtime_ns
    assert save_selection(tmp_path / "a.json", store, rule, chosen) == digest
    assert (tmp_path / "a.json").stat().st_mtime_ns == written, "the same choice again changes nothing"
    save_selection(tmp_path / "b.json", store, rule, chosen)
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"], "no draft is left"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(), "nothing to select"),
        (Rule(shots=0), "`shots` must be at least 1"),
        (Rule(top_k=0), "`top_k` must be"),
        (Rule(top_k=5), "`top_k` 5 is more than the 4"),
        (Rule(shots=1, seed=2**64), "`seed` must be between"),
        (Rule(shots=1, seed=-1), "`seed`"),
    ],
)
def test_a_rule_out_of_range_is_refused(rule: Rule, message: str, store: LabelStore) -> None:
    """Exit 2 with the option."""
    with pytest.raises(UsageError, match=message):
        choose(store, rule, Silent())


def test_unknown_classes_are_named(store: LabelStore) -> None:
    """With the nearest id that there is."""
    with pytest.raises(DataError, match="2 class ids are not in the vocabulary") as caught:
        choose(store, Rule(classes=("c00003", "c0003x", "zebra")), Silent())
    assert "'c0003x' (did you mean 'c00003'?)" in caught.value.message
    assert "'zebra' (the first known is 'c00000')" in caught.value.message


def rewritten(path: Path, change: Callable[[dict[str, Any]], object], seal: bool = True) -> None:
    """Change a selection file, with a digest that fits again or not."""
    document = json.loads(path.read_text())
    change(document)
    if seal:
        document["digest"] = canonical_digest({k: v for k, v in document.items() if k != "digest"})
    path.write_text(json.dumps(document))


DAMAGES: list[tuple[Callable[[dict[str, Any]], object], bool, type[TeachOnceError], str]] = [
    (lambda d: d["samples"].pop(), False, IntegrityError, "was changed after it was written"),
    (lambda d: d["rule"].update(seed=99), False, IntegrityError, "was changed after it was written"),
    (lambda d: d.pop("digest"), False, IntegrityError, "was changed after it was written"),
    (lambda d: d.update(schema=2), True, IntegrityError, "has schema 2; this program reads 1"),
    (lambda d: d.update(kind="teachonce-other"), True, DataError, "is no selection"),
    (lambda d: d["store"].update(samples="0" * 64), True, FingerprintError, "was made on other samples"),
    (lambda d: d["rule"].update(classes=["c00001", "x9"]), True, DataError, "1 class ids are not in the vocabulary"),
    (lambda d: d["rule"].update(top_k=5), True, UsageError, "uses 5 classes of each soft label"),
    (lambda d: d["rule"].update(shuffle=1), True, IntegrityError, "unknown key 'shuffle'"),
    (lambda d: d.pop("rule"), True, IntegrityError, "rule"),
    (lambda d: d.update(samples=[3, 3]), True, IntegrityError, "samples"),
    (lambda d: d.update(samples=[3, 40]), True, IntegrityError, "samples"),
    (lambda d: d.update(samples=[]), True, IntegrityError, "samples"),
    (lambda d: d.update(samples=["a"]), True, IntegrityError, "samples"),
]


@pytest.mark.parametrize(("change", "seal", "error", "message"), DAMAGES)
def test_a_damaged_foreign_or_newer_file_is_refused(
    change: Callable[[dict[str, Any]], object],
    seal: bool,
    error: type[TeachOnceError],
    message: str,
    store: LabelStore,
    tmp_path: Path,
) -> None:
    """Each with its own error and a hint what to do."""
    rule = Rule(shots=2, seed=SEED, top_k=3, classes=("c00001", "c00004"))
    save_selection(tmp_path / "a.json", store, rule, choose(store, rule, Silent()))
    rewritten(tmp_path / "a.json", change, seal)
    with pytest.raises(error, match=message) as caught:
        load_selection(tmp_path / "a.json", store)
    assert "a.json" in caught.value.message and type(caught.value) is error


@pytest.mark.parametrize("content", [None, b"", b"not json", b"[1]", b"\xff\xfe", b'"text"'])
def test_what_is_no_selection_is_refused(content: bytes | None, store: LabelStore, tmp_path: Path) -> None:
    """Exit 3 with the command that writes one."""
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match="selection") as caught:
        load_selection(tmp_path / "a.json", store)
    assert "teachonce subset" in caught.value.hint
