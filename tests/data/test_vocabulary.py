"""Vocabularies: ids in order, one name each, ties counted; the published counts of timm's ImageNet lists."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachonce.data.spelling import spoken
from teachonce.data.vocabulary import (
    Vocabulary,
    distinct_names,
    folder_vocabulary,
    load_vocabulary,
    parse_tsv,
    read_class_ids,
)
from teachonce.errors import DataError, UsageError

LISTS = [
    ("imagenet22k", "first-lemma", 21841, 3243),
    ("imagenet22k", "distinct", 21841, 1152),
    ("imagenet21k_miil_w21", "first-lemma", 10450, 1426),
    ("imagenet21k_miil_w21", "distinct", 10450, 457),
]


def timm_file(name: str) -> list[str]:
    """The lines of a text file that timm's wheel carries."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("name", "rule", "tied"), [(name, rule, tied) for name, rule, _, tied in LISTS])
def test_tied_classes_of_timms_lists(name: str, rule: str, tied: int) -> None:
    """How many classes share their name with another, by naming rule, counted here without our `tied`."""
    vocabulary = load_vocabulary(f"timm:{name}/{rule}")
    counts = Counter(" ".join(n.lower().split()) for n in vocabulary.names)
    assert sum(c for c in counts.values() if c > 1) == vocabulary.tied() == tied


@pytest.mark.parametrize("name", ["imagenet22k", "imagenet21k_miil_w21", "imagenet"])
def test_the_order_is_that_of_timms_file(name: str) -> None:
    """Class index i is line i of the list, so that checkpoints and labels of others fit."""
    assert list(load_vocabulary(f"timm:{name}").ids) == timm_file(f"{name}_synsets.txt")


def test_first_lemmas_are_those_of_timms_table() -> None:
    """`first-lemma` is what stands before the first comma."""
    lemmas = dict(line.split("\t", 1) for line in timm_file("imagenet_synset_to_lemma.txt"))
    vocabulary = load_vocabulary("timm:imagenet/first-lemma")
    assert list(vocabulary.names) == [lemmas[i].split(",")[0].strip() for i in vocabulary.ids]
    assert len(vocabulary) == 1000


def test_the_default_rule_is_distinct() -> None:
    """Without a rule, names are lengthened where classes would share one."""
    assert load_vocabulary("timm:imagenet").digest == load_vocabulary("timm:imagenet/distinct").digest
    assert distinct_names([["crane"], ["crane", "bird"], ["fox"]]) == ["crane", "crane, bird", "fox"]


@given(st.lists(st.lists(st.sampled_from("abcAB"), min_size=1, max_size=3), max_size=8))
def test_names_are_equal_only_where_all_lemmas_are(lemmas: list[list[str]]) -> None:
    """Names begin with the first lemma; two are alike only when nothing more could tell the classes apart."""
    names = distinct_names(lemmas)
    assert len(names) == len(lemmas)
    for i, (name, words) in enumerate(zip(names, lemmas, strict=True)):
        assert ", ".join(words).startswith(name) and name.split(", ")[0] == words[0]
        for j in range(i):
            if spoken(name) == spoken(names[j]):
                assert spoken(", ".join(words)) == spoken(", ".join(lemmas[j]))


def test_ties_are_counted_as_the_tokenizer_hears_names() -> None:
    """Case and spaces do not tell names apart for CLIP."""
    assert Vocabulary(("a", "b", "c", "d"), ("Crane", "crane", "red  fox", "red fox")).tied() == 4
    assert spoken("  Red \t FOX ") == "red fox"


def test_tsv_there_and_back() -> None:
    """Writing and reading keeps ids, names and digest; blank lines and outer spaces do not count."""
    vocabulary = Vocabulary(("n1", "n2"), ("red fox", "blå fisk"))
    again = parse_tsv(vocabulary.to_tsv().decode(), "x")
    assert again == vocabulary and again.digest == vocabulary.digest
    assert parse_tsv("\n n1 \t red   fox \n\nn2\tblå fisk\n", "x") == vocabulary
    assert parse_tsv("n1\tred fox\r\nn2\tblå fisk\r\n", "x") == vocabulary
    assert parse_tsv("n1\tred\u2028fox\t\nn2\tblå\xa0fisk", "x") == vocabulary, "only LF and CR LF end a line"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tx\nb\n", "f.tsv, line 2: expected `id TAB name`"),
        ("a\t\n", "line 1"),
        ("\tx\n", "line 1"),
        ("a\tx\nb\ty\tremark\n", "f.tsv, line 2: expected `id TAB name`, found 'b\\ty\\tremark'; what follows"),
        ("a\tx\x1cb\ty\n", "f.tsv, line 1: expected `id TAB name`"),
        ("a\tx\x0by\n", "control characters"),
        ("a\tx\u2028b\ty\n", "f.tsv, line 1"),
        ("", "holds no class"),
        ("a\tx\na\ty\n", "'a' comes 2 times"),
    ],
)
def test_a_malformed_class_list_is_refused_with_its_line(text: str, message: str) -> None:
    """Half lines, empty files and doubled ids are data errors."""
    with pytest.raises(DataError, match="f.tsv") as caught:
        parse_tsv(text, "f.tsv")
    assert message in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path: Path) -> None:
    """Spreadsheets write one; the first class would otherwise never match."""
    file = tmp_path / "c.tsv"
    file.write_bytes(b"\xef\xbb\xbfn1\tfox\n")
    assert load_vocabulary(str(file)).ids == ("n1",)


def test_relative_files_are_looked_for_below_the_root(tmp_path: Path) -> None:
    """A manifest names its class list relative to its data."""
    (tmp_path / "c.tsv").write_text("n1\tfox\n")
    assert load_vocabulary("c.tsv", tmp_path).names == ("fox",)
    with pytest.raises(DataError, match="there is no class list gone.tsv, neither below") as caught:
        load_vocabulary("gone.tsv", tmp_path)
    assert str(tmp_path) in caught.value.message and str(Path.cwd()) in caught.value.message
    assert "timm:" in caught.value.hint


def test_wrong_timm_lists_and_rules_are_answered_with_the_nearest() -> None:
    """Exit 2 and a suggestion."""
    with pytest.raises(UsageError, match="no class list 'imagenet2k': did you mean") as caught:
        load_vocabulary("timm:imagenet2k")
    assert "timm:NAME" in caught.value.hint and "`vocabulary`" not in caught.value.hint
    with pytest.raises(UsageError, match="naming rule 'distinkt': did you mean 'distinct'") as caught:
        load_vocabulary("timm:imagenet22k/distinkt")
    assert "timm:NAME/RULE" in caught.value.hint


def test_folders_as_a_vocabulary(tmp_path: Path) -> None:
    """Sorted folder names are ids; underscores are spaces in names; files do not count."""
    for name in ("tabby_cat", "ant"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.txt").write_text("x")
    assert folder_vocabulary(tmp_path) == Vocabulary(("ant", "tabby_cat"), ("ant", "tabby cat"))
    with pytest.raises(DataError, match="is not a folder"):
        folder_vocabulary(tmp_path / "gone")
    with pytest.raises(DataError, match="holds no class"):
        folder_vocabulary(tmp_path / "ant")


def test_base_and_novel_are_halves_unless_a_file_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the list, the odd class in base."""
    monkeypatch.chdir(tmp_path)
    vocabulary = Vocabulary(("c", "a", "b"), ("x", "y", "z"))
    assert read_class_ids(Path("base"), vocabulary) == ("c", "a")
    assert read_class_ids(Path("novel"), vocabulary) == ("b",)
    Path("base").write_text("b\n")
    assert read_class_ids(Path("base"), vocabulary) == ("b",)


def test_class_ids_are_what_stands_before_the_first_tab(tmp_path: Path) -> None:
    """What follows is for people, however many tabs and odd characters; another id is answered without a store."""
    vocabulary, file = Vocabulary(("a", "b"), ("x", "y")), tmp_path / "ids.tsv"
    file.write_bytes("b\tone\u2028two\tthree\r\n\na\n".encode())
    assert read_class_ids(file, vocabulary) == ("a", "b")
    file.write_text("c\n")
    with pytest.raises(DataError, match="'c'") as caught:
        read_class_ids(file, vocabulary)
    assert "store" not in caught.value.hint and "one a line" in caught.value.hint


@pytest.mark.parametrize("name", ["x\x00y", "\u200b", "\u200b \u2060"])
def test_a_name_that_cannot_be_seen_is_refused(name: str) -> None:
    """It would make a class of nothing."""
    with pytest.raises(DataError, match="the name of class 'n2'"):
        parse_tsv(f"n1\tred fox\nn2\t{name}\n", "classes.tsv")
    assert parse_tsv("n1\trobe d’été 👗\n", "classes.tsv").names == ("robe d’été 👗",)
