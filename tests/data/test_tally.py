"""The tally of what a scan passes over: how it is said, and that it stays small."""

from __future__ import annotations

from teachonce.data.places import PassedOver, Tally


def test_one_line_says_all() -> None:
    """Reasons in a fixed order, endings by frequency, leftovers apart, the plug-in that would help by its package."""
    tally = Tally()
    for name in ("a.HEIC", "b.heic", "c.xcf", "no_ending", "a b.what is this thing"):
        tally.pass_over_ending(f"n1/{name}")
    tally.pass_over("sub_folders", "n1/deep", 8)
    tally.pass_over("links", "n1/caf\udce9.jpg")
    tally.pass_over("leftovers", ".DS_Store")
    line = str(tally.passed_over())
    assert line.startswith(
        "passed over: 1 links, 5 other endings (.heic 2, none 2, .xcf 1), 8 in sub-folders; 1 system leftovers"
    )
    assert line.endswith("; `pip install pillow-heif` would read some")
    assert tally.passed_over().examples["links"] == ("n1/caf\\xe9.jpg",), "an example can always be written"
    assert not PassedOver() and bool(tally.passed_over())


def test_no_ending_grows_the_tally_without_limit() -> None:
    """Names that end in numbers have a new ending each."""
    tally = Tally()
    for number in range(1000):
        tally.pass_over_ending(f"x.{number}")
    assert len(tally.passed_over().endings) <= 65 and sum(tally.passed_over().endings.values()) == 1000
