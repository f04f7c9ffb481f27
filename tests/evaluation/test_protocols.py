"""Protocols: what ships, how options are put in, how figures are averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from teachonce.data.manifests import load_manifest
from teachonce.errors import UsageError
from teachonce.evaluation.protocols import (
    Protocol,
    ProtocolSet,
    averages,
    filled_in,
    harmonic,
    harmonic_means,
    load_protocol,
    shipped_protocols,
)

CROSS = {
    "caltech101",
    "oxford-pets",
    "stanford-cars",
    "flowers102",
    "food101",
    "fgvc-aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
}


@pytest.mark.parametrize("name", sorted(shipped_protocols()))
def test_every_shipped_protocol_loads_and_its_sets_exist(name: str) -> None:
    """Each set's manifest ships, and has the split."""
    protocol = load_protocol(name)
    assert protocol.name == name and protocol.about and protocol.source
    for item in protocol.sets:
        assert item.manifest == "--manifest" or load_manifest(item.manifest).split(item.split)


def test_the_published_protocols_have_the_published_sets() -> None:
    """Ten data sets; four domains of ImageNet, of which two have 200 classes by their own lists."""
    assert set(shipped_protocols()) == {"cross-dataset", "domain-generalisation", "in-vocabulary", "base-to-novel"}
    assert {item.manifest for item in load_protocol("cross-dataset").sets} == CROSS
    domains = [item.manifest for item in load_protocol("domain-generalisation").sets]
    assert domains == ["imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r"]
    assert [load_manifest(name).classes for name in domains[2:]] == ["timm:imagenet_a", "timm:imagenet_r"]


def test_options_go_where_a_protocol_asks_for_them() -> None:
    """The split has a default, the vocabulary may lack, a set that needs more is left out, a manifest must be there."""
    protocol = load_protocol("in-vocabulary")
    ready, left_out = filled_in(protocol, {"manifest": "m", "without": None, "vocabulary": None})
    assert [(item.name, item.manifest, item.split, item.vocabulary) for item in ready] == [
        ("all-names", "m", "val", None)
    ]
    assert left_out == ["without-held-out-names"]
    given = {"manifest": "m", "split": "test", "vocabulary": "timm:imagenet22k", "without": "held.tsv"}
    ready, left_out = filled_in(protocol, given)
    assert [(item.without, item.split, item.vocabulary) for item in ready] == [
        (None, "test", "timm:imagenet22k"),
        ("held.tsv", "test", "timm:imagenet22k"),
    ]
    assert not left_out
    with pytest.raises(UsageError, match="needs a data set"):
        filled_in(protocol, {})
    with pytest.raises(UsageError, match="`manifest`, `classes` would do nothing in the protocol 'cross-dataset'"):
        filled_in(load_protocol("cross-dataset"), {"manifest": "m", "classes": "base", "split": None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema = 1\n", "the key 'name' is missing"),
        ('name = "p"\ntitle = "P"\nsets = []', "it names no set"),
        ('name = "p"\ntitle = "P"\n[[sets]]\nname = "a"\nmanifest = "m"\nsplitt = "x"', "did you mean 'split'"),
        ('name = "p"\ntitle = "P"\n[[sets]]\nname = "a/b"\nmanifest = "m"', "letters, digits, dots"),
        ('name = "p"\ntitle = "P"\n' + '[[sets]]\nname = "a"\nmanifest = "m"\n' * 2, "two sets are called 'a'"),
        ('name = "p"\ntitle = "P"\n[[sets]]\nname = "a"\nmanifest = "m"\namong = "none"', "'none' is not allowed"),
        ("= 1", "not valid TOML"),
    ],
)
def test_a_bad_protocol_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """Exit 2 with the key."""
    (tmp_path / "p.toml").write_text(text if "schema" in text else f"schema = 1\n{text}")
    with pytest.raises(UsageError, match=message):
        load_protocol(str(tmp_path / "p.toml"))


def test_an_unknown_protocol_is_answered_with_the_nearest() -> None:
    """And with all that there are."""
    with pytest.raises(UsageError, match="did you mean 'cross-dataset'") as caught:
        load_protocol("cross-datasets")
    assert "base-to-novel" in caught.value.hint


def test_files_beside_a_protocol_are_found(tmp_path: Path) -> None:
    """Wherever the command is run."""
    (tmp_path / "some.tsv").write_text("n1\n")
    (tmp_path / "p.toml").write_text(
        'schema = 1\nname = "p"\ntitle = "P"\n[[sets]]\nname = "a"\nmanifest = "local-tars"\nclasses = "some.tsv"\n'
    )
    item = load_protocol(str(tmp_path / "p.toml")).sets[0]
    assert (item.classes, item.manifest, item.part) == (str(tmp_path / "some.tsv"), "local-tars", "listed")


def test_means_count_all_sets_alike_and_h_is_of_means() -> None:
    """Two sets, each with both halves: H of the averages, not the average of H."""

    def figures(top1: float, template: float | None) -> dict[str, Any]:
        gain = None if template is None else top1 - template
        return {
            "top1": top1,
            "top5": 1.0,
            "macro": top1,
            "ece": 0.1,
            "nll": 2.0,
            "template_top1": template,
            "gain": gain,
            "linear_top1": None if template is None else template + 0.1,
            "linear_gain": None if template is None else 0.1,
        }

    lines = [
        ("base", figures(0.9, 0.8)),
        ("novel", figures(0.5, 0.7)),
        ("base", figures(0.7, 0.6)),
        ("novel", figures(0.3, 0.5)),
        ("all", figures(0.4, None)),
    ]
    means = averages(lines)
    assert [(mean["part"], mean["sets"]) for mean in means] == [("base", 2), ("novel", 2), ("all", 1)]
    assert [mean["top1"] for mean in means] == pytest.approx([0.8, 0.4, 0.4])
    assert means[2]["template_top1"] is None and means[0]["gain"] == pytest.approx(0.1)
    (line,) = harmonic_means(means)
    assert line["top1_h"] == pytest.approx(2 * 0.8 * 0.4 / 1.2) and line["names"] == "own"
    assert line["template_top1_h"] == pytest.approx(2 * 0.7 * 0.6 / 1.3)
    assert line["linear_top1_h"] == pytest.approx(2 * 0.8 * 0.7 / 1.5)
    assert harmonic(0.0, 0.0) == 0.0


def test_what_is_averaged_together() -> None:
    """The kind of classes, the kind of names, and whether names were taken out."""

    def part(**fields: Any) -> str:
        return ProtocolSet(name="a", manifest="m", **fields).part

    assert [part(), part(classes="all"), part(classes="base"), part(classes="novel", among="all")] == [
        "all",
        "all",
        "base",
        "novel among all",
    ]
    assert part(without="held.tsv") == "all without some" and part(classes="timm:x") == "listed"
    assert Protocol(schema=1, name="p", title="P", sets=(ProtocolSet(name="a", manifest="m"),)).sets[0].split == "test"
