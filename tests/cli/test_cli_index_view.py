"""`index` shows a person the figures of a split, and in tables of their own what is no sample or no image."""

from __future__ import annotations

from teachonce.cli.views.index import by_split

PASSED_OVER = {
    "counts": {"links": 2, "other_endings": 3},
    "endings": {".heic": 2, ".gif": 1},
    "examples": {"links": ["a.jpg"], "other_endings": ["b.heic"]},
}
SPLIT = {
    "split": "train",
    "images": 5,
    "foreign": {"zeros": 1},
    "foreign_examples": {"zeros": ["n1/c.jpg"]},
    "empty_parts": 1,
    "empty_part_examples": ["n2"],
    "passed_over": PASSED_OVER,
}


def test_each_reason_has_a_line_of_its_own() -> None:
    values = by_split({"manifest": "m", "splits": [SPLIT], "faults": []})
    assert values["splits"] == [{"split": "train", "images": 5}]
    assert [tuple(line.values()) for line in values["passed_over"]] == [
        ("train", 2, "links", ["a.jpg"]),
        ("train", 3, "other endings (.heic 2, .gif 1)", ["b.heic"]),
    ]
    assert [tuple(line.values()) for line in values["no_images"]] == [
        ("train", 1, "their bytes are zeros", ["n1/c.jpg"]),
        ("train", 1, "without any image", ["n2"]),
    ]


def test_a_split_that_is_taken_whole_has_no_such_table() -> None:
    assert set(by_split({"splits": [{"split": "train", "images": 5}]})) == {"splits"}
