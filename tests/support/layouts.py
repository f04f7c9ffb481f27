"""The same photos laid out as each shipped manifest says, structure by structure, for tests.

It tests nothing. Names of files, members and columns are those of the real releases; only their number is smaller.
"""

from __future__ import annotations

import io
import json
import tarfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tomli_w
from worlds import add_member

from teachonce.data.manifests import shipped_manifests

Photos = Mapping[str, bytes]  # n01_00 -> the bytes of a JPEG; the class id comes before the underscore


def class_tar(photos: Photos, class_id: str) -> bytes:
    """One tar of a class, as ImageNet packs them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in photos.items():
            if name.startswith(class_id + "_"):
                add_member(tar, f"{name}.JPEG", data)
    return buffer.getvalue()


def fall11(root: Path, photos: Photos, ids: Sequence[str]) -> None:
    """One tar of tars."""
    with tarfile.open(root / "fall11_whole.tar", "w") as tar:
        for class_id in ids:
            add_member(tar, f"{class_id}.tar", class_tar(photos, class_id))


def tars_in(folder: str) -> Callable[[Path, Photos, Sequence[str]], None]:
    """One tar a class in a folder."""

    def write(root: Path, photos: Photos, ids: Sequence[str]) -> None:
        (root / folder).mkdir()
        for class_id in ids:
            (root / folder / f"{class_id}.tar").write_bytes(class_tar(photos, class_id))

    return write


def folders_in(*folders: str) -> Callable[[Path, Photos, Sequence[str]], None]:
    """Class folders below each of these, the same in all."""

    def write(root: Path, photos: Photos, ids: Sequence[str]) -> None:
        for folder in folders:
            for class_id in ids:
                (root / folder / class_id).mkdir(parents=True)
            for name, data in photos.items():
                (root / folder / name.partition("_")[0] / f"{name}.JPEG").write_bytes(data)

    return write


def shards(*prefixes: str) -> Callable[[Path, Photos, Sequence[str]], None]:
    """timm's WebDataset shards, three of them: image, class number and a JSON description a sample."""

    def write(root: Path, photos: Photos, ids: Sequence[str]) -> None:
        names = list(photos)
        for prefix in prefixes:
            for shard in range(3):
                with tarfile.open(root / f"{prefix}-{shard:04d}.tar", "w") as tar:
                    for name in names[shard::3]:
                        label = ids.index(name.partition("_")[0])
                        add_member(tar, f"{name}.cls", str(label).encode())
                        add_member(tar, f"{name}.jpg", photos[name])
                        add_member(
                            tar, f"{name}.json", json.dumps({"filename": f"{name}.JPEG", "label": label}).encode()
                        )

    return write


def parquet(
    root: Path, photos: Photos, ids: Sequence[str], splits: Sequence[str] = ("train", "validation", "test")
) -> None:
    """Two parquet files a split, in row groups of seven, with the schema that the `datasets` library writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"names": list(ids), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    names = list(photos)
    (root / "data").mkdir()
    for split in splits:
        for part in range(2):
            rows = [
                {"image": {"bytes": photos[name], "path": f"{name}.JPEG"}, "label": ids.index(name.partition("_")[0])}
                for name in names[part::2]
            ]
            pq.write_table(
                pa.Table.from_pylist(rows, schema), root / f"data/{split}-{part:05d}-of-00002.parquet", row_group_size=7
            )


def folder_tars(root: Path, photos: Photos, ids: Sequence[str]) -> None:
    """Two tars of class folders, below a folder of their own."""
    names = list(photos)
    for split in ("train", "val"):
        (root / split).mkdir()
        for part in range(2):
            with tarfile.open(root / f"{split}/part-{part}.tar", "w") as tar:
                for name in names[part::2]:
                    add_member(tar, f"images/{name.partition('_')[0]}/{name}.jpg", photos[name])


LAYOUTS: dict[str, Callable[[Path, Photos, Sequence[str]], None]] = {
    "imagenet21k-fall11": fall11,
    "imagenet21k-fall11-tars": tars_in("fall11_whole"),
    "imagenet21k-winter21": tars_in("winter21_whole"),
    "imagenet21k-p": folders_in("imagenet21k_resized/imagenet21k_train", "imagenet21k_resized/imagenet21k_val"),
    "imagenet21k-p-fall11": folders_in("imagenet21k_train", "imagenet21k_val"),
    "timm-imagenet-22k-wds": shards("imagenet22k-train", "imagenet22k-validation"),
    "timm-imagenet-w21-wds": shards("imagenet_w21-train"),
    "timm-imagenet-12k-wds": shards("imagenet12k-train", "imagenet12k-validation"),
    "hf-parquet": parquet,
    "folder-tars": folder_tars,
    "image-folder": folders_in("train", "val"),
}


def laid_out(name: str, root: Path, photos: Photos, ids: Sequence[str]) -> str:
    """Write photos as a shipped manifest says; returns that manifest for their number and classes."""
    root.mkdir(parents=True, exist_ok=True)
    LAYOUTS[name](root, photos, ids)
    if not (root / "classes.tsv").exists():
        (root / "classes.tsv").write_text("".join(f"{class_id}\t{class_id}\n" for class_id in ids))
    text = tomllib.loads(shipped_manifests()[name].read_text(encoding="utf-8"))
    if text["classes"].startswith("timm:"):
        text["classes"] = "classes.tsv"
    for split in text["splits"].values():
        counts = {"webdataset": 3, "nested-tars": len(ids), "class-tars": len(ids), "image-folder": len(ids)}
        if "samples" in split:
            split["samples"] = len(photos)
        if "archives" in split:
            split["archives"] = counts[split["format"]]
    path = root / "manifest.toml"
    path.write_bytes(tomli_w.dumps(text).encode())
    return str(path)
