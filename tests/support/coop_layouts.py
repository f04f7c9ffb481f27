"""Made-up photos laid out below one root as CoOp's DATASETS.md has the evaluation sets, for tests. It tests nothing."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from worlds import encoded, make_photo

from teachonce.data.manifests import shipped_manifests
from teachonce.data.vocabulary import load_vocabulary

# Of the sets with a JSON split: their folder, that of the images, the split's name, and a path of an image.
SPLITS = {
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "{c}/image_{i:04d}.jpg"),
    "oxford-pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json", "{c}_{i}.jpg"),
    "stanford-cars": ("stanford_cars", "", "split_zhou_StanfordCars.json", "cars_train/{n:05d}.jpg"),
    "flowers102": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "image_{n:05d}.jpg"),
    "food101": ("food-101", "images", "split_zhou_Food101.json", "{c}/{n}.jpg"),
    "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json", "a/{c}/outdoor/sun_{n}.jpg"),
    "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json", "{c}/{c}_{i:04d}.jpg"),
    "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json", "{c}/{c}_{i}.jpg"),
    "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "{c}/v_{c}_g0{i}_c01.jpg"),
}
FOLDERS = {
    "imagenet-v2": ("imagenetv2", "imagenetv2-matched-frequency-format-val", "timm:imagenet"),
    "imagenet-sketch": ("imagenet-sketch", "images", "timm:imagenet"),
    "imagenet-a": ("imagenet-adversarial", "imagenet-a", "timm:imagenet_a"),
    "imagenet-r": ("imagenet-rendition", "imagenet-r", "timm:imagenet_r"),
}
CIFAR = {"cifar10": ("plain_text", "label"), "cifar100": ("cifar100", "fine_label")}
NAMES = (*SPLITS, "fgvc-aircraft", *FOLDERS, *CIFAR)
CLASSES = ("red_fox", "blue_jay", "cup_of_tea", "piano", "yellow_bus")
EACH = 4  # photos of a class


@dataclass(frozen=True)
class MadeUp:
    """What was written."""

    manifest: str
    """Path of the shipped manifest's copy, which does not ask for the release's number of images."""
    names: tuple[str, ...]
    """Class names that compete."""
    photos: tuple[tuple[bytes, int], ...]
    """Bytes of each photo of the test split, and its class."""


def photos() -> list[tuple[bytes, int]]:
    """Bytes and class number."""
    return [(encoded(make_photo(c, i), quality=92), c) for c in range(len(CLASSES)) for i in range(EACH)]


def without_counts(name: str, folder: Path) -> str:
    """A copy of a shipped manifest for sets that are smaller than the release."""
    data = tomllib.loads(shipped_manifests()[name].read_text(encoding="utf-8"))
    for split in data["splits"].values():
        split.pop("samples", None)
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(data))
    return str(path)


def lay_out(name: str, root: Path) -> MadeUp:
    """Write a data set as the manifest of this name says."""
    made, names = photos(), tuple(c.replace("_", " ") for c in CLASSES)
    if name in SPLITS:
        json_split(root, name, made)
    elif name in FOLDERS:
        names = class_folders(root, name, made)
    elif name in CIFAR:
        parquet(root / name / CIFAR[name][0], CIFAR[name][1], made)
        for folder in ("train", "test"):
            image_folders(root / name / folder, made)
    else:
        aircraft(root / "fgvc_aircraft", made)
    return MadeUp(without_counts(name, root), names, tuple(made))


def json_split(root: Path, name: str, made: Sequence[tuple[bytes, int]]) -> None:
    """One JSON file for all parts; val is the first photo of each class, test is all."""
    folder, images, split, pattern = SPLITS[name]
    listed = []
    for n, (data, c) in enumerate(made):
        path = pattern.format(c=CLASSES[c], i=n % EACH, n=n)
        write(root / folder / images / path, data)
        listed.append([path, c, CLASSES[c]])
    write(root / folder / images / "not_listed.jpg", b"no image of any part")
    document = {"train": listed[1:], "val": listed[::EACH], "test": listed}
    write(root / folder / split, json.dumps(document).encode())


def aircraft(folder: Path, made: Sequence[tuple[bytes, int]]) -> None:
    """Text files: a name a line, and an image with its name a line."""
    names = [c.replace("_", " ") for c in CLASSES]
    write(folder / "variants.txt", "".join(f"{name}\n" for name in names).encode())
    lines = []
    for n, (data, c) in enumerate(made):
        write(folder / f"images/{1000000 + n}.jpg", data)
        lines.append(f"{1000000 + n} {names[c]}\n")
    for part in ("train", "val", "test"):
        write(folder / f"images_variant_{part}.txt", "".join(lines).encode())


def class_folders(root: Path, name: str, made: Sequence[tuple[bytes, int]]) -> tuple[str, ...]:
    """Folders by WordNet id, or numbered; returns the names of all classes of the list."""
    folder, images, classes = FOLDERS[name]
    known, everything = load_vocabulary(classes), load_vocabulary("timm:imagenet")
    lines = [f"{class_id} thing {number}\n" for number, class_id in enumerate(everything.ids)]
    write(root / folder / "classnames.txt", "".join(lines).encode())
    for n, (data, c) in enumerate(made):
        class_name = str(c) if name == "imagenet-v2" else known.ids[c]
        write(root / folder / images / class_name / f"photo_{n}.JPEG", data)
    write(root / folder / images / "README.txt", b"as in the release")
    return tuple(f"thing {everything.index[class_id]}" for class_id in known.ids)


def image_folders(folder: Path, made: Sequence[tuple[bytes, int]]) -> None:
    """Folders by class name; JPEG bytes named so, as an export might have them."""
    for n, (data, c) in enumerate(made):
        write(folder / CLASSES[c] / f"{n}.jpg", data)


def parquet(folder: Path, column: str, made: Sequence[tuple[bytes, int]]) -> None:
    """The columns and the schema that the hub has; the coarse classes come first, to be passed over."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"img": {"_type": "Image"}, "coarse_label": {"names": ["things"]}, column: {"names": list(CLASSES)}}
    table = pa.table(
        {
            "img": [{"bytes": data, "path": None} for data, _ in made],
            "coarse_label": [0] * len(made),
            column: [c for _, c in made],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    for part in ("train", "test"):
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write(folder / f"{part}-00000-of-00001.parquet", buffer.getvalue())


def write(path: Path, data: bytes) -> None:
    """A file, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
