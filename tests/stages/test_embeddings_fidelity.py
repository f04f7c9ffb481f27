"""The teacher's stored embeddings and the fidelity report, against the models themselves and brute force."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from worlds import CHUNK_ROWS, CHUNKS, PHOTOS, World, all_arrays, keys_of, synthetic_store, teach_inline

from teachonce.core.progress import Silent
from teachonce.data.reader import decode
from teachonce.errors import DataError, FingerprintError, ImageChangedError, UsageError
from teachonce.labels.codec import decode_embeddings, encode_embeddings
from teachonce.labels.fidelity import fidelity_report, measured_rows
from teachonce.labels.format import EMBEDDING, EMBEDDING_SCALES, LABELS, TAIL_RULES, fidelity_columns
from teachonce.labels.store import LabelStore
from teachonce.models.clip import load_clip
from teachonce.stages.inspect import InspectRequest, inspect
from teachonce.stages.verify import VerifyRequest, verify


def features_of(world: World, teacher: str, store: Path) -> np.ndarray:
    """The teacher's unit features of every row, in float32, one image at a time."""
    clip = load_clip(teacher)
    names = [key.rpartition("/")[2].removesuffix(".jpg") for key in keys_of(store)]
    parts = [clip.encode_images(clip.prepare(decode(world.photos[name]))[None]) for name in names]
    return torch.cat(parts).numpy()


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("float16", 1e-3)])
def test_embeddings_are_the_teachers_and_give_its_logits(
    kind: Any, error: float, world: World, teacher: str, tmp_path: Path
) -> None:
    """Written in the same pass; read by plain zarr they are the features' directions; verify and inspect know them."""
    path = tmp_path / "a.zarr"
    teach_inline(world, path, teacher, top_k=5, embeddings=kind)
    exact = features_of(world, teacher, path)
    values = zarr.open_group(str(path), mode="r")["embedding/values"][:]
    assert values.dtype == np.dtype(kind) and values.shape == exact.shape
    plain = values.astype(np.float64)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(plain - exact).max() < error
    store = LabelStore.open(path)
    ours = np.concatenate([store.embeddings(chunk) for chunk in range(CHUNKS)])
    assert np.allclose(ours, plain, atol=1e-6)
    assert verify(VerifyRequest(labels=path), Silent()).ok
    inspected = inspect(InspectRequest(labels=path), Silent())
    assert inspected.embeddings == {"kind": kind, "width": 16, "chunks_committed": CHUNKS}
    assert inspected.bytes_per_row["embeddings"] > 0
    logits = store.groups[LABELS].fingerprint["logit_scale"] * ours @ store.class_embeddings().T
    best = store.decode_labels(all_arrays(path)).class_ids[:, 0]
    assert (logits.argmax(1) == best).mean() > 0.95


def test_embeddings_added_later_leave_the_labels_alone(world: World, teacher: str, tmp_path: Path) -> None:
    """Two passes give the bits of one; another kind afterwards is refused by name."""
    once, twice = tmp_path / "once.zarr", tmp_path / "twice.zarr"
    teach_inline(world, once, teacher, top_k=5, embeddings="int8")
    teach_inline(world, twice, teacher, top_k=5)
    result = teach_inline(world, twice, teacher, top_k=5, embeddings="int8")
    assert result.chunks_written == CHUNKS
    assert LabelStore.open(once).store_id() == LabelStore.open(twice).store_id()
    with pytest.raises(FingerprintError, match="kind: stored 'int8', asked for 'float16'"):
        teach_inline(world, twice, teacher, top_k=5, embeddings="float16")


def test_embeddings_need_a_teacher(world: World, student: str, finished: Path, tmp_path: Path) -> None:
    """Without --teacher there is nothing to embed; a store without them says how to get them."""
    with pytest.raises(UsageError, match="`teacher`"):
        teach_inline(world, tmp_path / "a.zarr", None, students=(student,), embeddings="int8")
    with pytest.raises(DataError, match="no image embeddings") as caught:
        LabelStore.open(finished).embeddings(0)
    assert "`embeddings` int8" in caught.value.hint


def test_coded_embeddings_keep_direction_and_holes() -> None:
    """int8 within half a step of the largest entry; rows of NaN are fill values and come back as NaN."""
    exact = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    exact[7] = np.nan
    coded = encode_embeddings(exact, "int8")
    assert (coded[7] == -128).all() and coded[:7].min() >= -127
    decoded = decode_embeddings(coded)
    assert np.isnan(decoded[7]).all()
    good = np.arange(50) != 7
    assert np.allclose(np.linalg.norm(decoded[good], axis=1), 1, atol=1e-6)
    step = np.abs(exact[good]).max(1, keepdims=True) / 127
    assert (np.abs(decoded[good] - exact[good]) <= 0.6 * step + np.abs(exact[good]) * 0.01).all()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in float64, 0 ln 0 = 0."""
    inside = p > 0
    return float((p[inside] * np.log(p[inside] / q[inside])).sum())


def test_the_report_is_what_brute_force_finds(tmp_path: Path) -> None:
    """Every column of every measured row, written out the long way over the whole vocabulary."""
    path = tmp_path / "a.zarr"
    store, logits = synthetic_store(path, rows=40, chunk_rows=10, classes=12, top_k=4)
    p_all = np.exp(logits.astype(np.float64))
    p_all /= p_all.sum(1, keepdims=True)
    table = zarr.open_group(str(path), mode="r")["fidelity"][:].astype(np.float64)
    rows = [10 * chunk + int(r) for chunk in range(4) for r in measured_rows(10, store.layout.fidelity_rows)]
    names = fidelity_columns((1, 2, 4))
    assert store.layout.fidelity_k == (1, 2, 4) and table.shape == (32, len(names))
    label = store.read_chunk
    for row, line in zip(rows, table, strict=True):
        figures = dict(zip(names, line, strict=True))
        data = label(LABELS, row // 10)
        decoded, r = store.decode_labels(data), row % 10
        ids, q, p = decoded.class_ids[r], np.exp(decoded.log_probs[r].astype(np.float64)), p_all[row]
        assert figures["value_kl"] == pytest.approx(kl(p[ids] / p[ids].sum(), q / q.sum()), abs=2e-6)
        whole = q.sum() + np.exp(float(decoded.log_residual[r, 0]))
        for k in (1, 2, 4):
            rest = 1 - q[:k].sum() / whole
            target = np.zeros(12)
            target[ids[:k]] = q[:k] / whole
            outside = np.setdiff1d(np.arange(12), ids[:k])
            flat, hit = target.copy(), target.copy()
            flat[outside] = rest / len(outside)
            hit[data["label"][r]] += rest
            lump_p, lump_q = np.append(p[ids[:k]], p[outside].sum()), np.append(q[:k] / whole, rest)
            wanted = {
                "mass": p[ids[:k]].sum(),
                "ghost": kl(lump_p, lump_q),
                "residual-uniform": kl(p, flat),
                "renormalise": kl(target / target.sum(), p),
                "to-label": kl(hit, p),
            }
            for name, value in wanted.items():
                assert figures[f"{name}@{k}"] == pytest.approx(value, rel=2e-3, abs=2e-6), (name, k)
    report = fidelity_report(store)
    assert report["rows"] == 32 and report["k"] == 4 and [line["k"] for line in report["by_k"]] == [1, 2, 4]
    column = table[:, names.index("mass@4")]
    assert report["mass"]["mean"] == pytest.approx(column.mean()) and report["mass"]["max"] == pytest.approx(
        column.max()
    )
    assert set(report["topk_kl"]) == set(TAIL_RULES)


def test_the_embedding_path_is_measured_at_three_scales(world: World, teacher: str, tmp_path: Path) -> None:
    """The stated KL is that of the two softmaxes, at the teacher's own scale, 40 and 100."""
    path = tmp_path / "a.zarr"
    teach_inline(world, path, teacher, top_k=5, embeddings="int8")
    store = LabelStore.open(path)
    exact, classes = features_of(world, teacher, path).astype(np.float64), store.class_embeddings().astype(np.float64)
    stored = np.concatenate([store.embeddings(chunk) for chunk in range(CHUNKS)]).astype(np.float64)
    table = zarr.open_group(str(path), mode="r")["embedding/fidelity"][:].astype(np.float64)
    table = table[~np.isnan(table[:, 0])]
    sizes = [min(CHUNK_ROWS, PHOTOS - CHUNK_ROWS * chunk) for chunk in range(CHUNKS)]
    rows = [CHUNK_ROWS * c + int(r) for c in range(CHUNKS) for r in measured_rows(sizes[c], store.layout.fidelity_rows)]
    assert len(table) == len(rows)
    for column, scale in enumerate((store.groups[LABELS].fingerprint["logit_scale"], *EMBEDDING_SCALES)):
        for line, row in zip(table, rows, strict=True):
            p, q = (
                np.exp(scale * (x[row] @ classes.T) - (scale * (x[row] @ classes.T)).max()) for x in (exact, stored)
            )
            assert line[column] == pytest.approx(kl(p / p.sum(), q / q.sum()), rel=0.05, abs=2e-6)
    report = fidelity_report(store)["embedding_kl"]
    assert list(report) == ["own scale", "scale 40", "scale 100"] and report["own scale"]["max"] < 0.01
    assert EMBEDDING in store.groups


def test_features_of_other_images_are_never_added(world: World, teacher: str, student: str, tmp_path: Path) -> None:
    """An archive repacked at equal length after labelling: a student added later is refused, with the first key."""
    root, path = tmp_path / "root", tmp_path / "a.zarr"
    shutil.copytree(world.root, root)
    teach_inline(world, path, teacher, top_k=5, root=root)
    index = LabelStore.open(path).index_of_chunk(3)
    archive = root / index.archives[int(index.archive[4])]
    content = bytearray(archive.read_bytes())
    content[int(index.offset[4]) + int(index.size[4]) - 9] ^= 1
    archive.write_bytes(bytes(content))
    for options in ({"students": (student,)}, {"embeddings": "int8"}):
        with pytest.raises(ImageChangedError, match="when .* was taught") as caught:
            teach_inline(world, path, teacher, top_k=5, root=root, **options)
        assert index.key(4) in str(caught.value) and "of chunk 3 differ" in str(caught.value)
