"""How class ids and names are spelled: what counts as the same text, and what is no name that a text model can use.

This module reads no file and loads no model.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WORDNET_ID = re.compile(r"n\d{8}")
# The pieces into which CLIP's tokenizer cuts a text before it looks for tokens (Radford et al., arXiv 2103.00020).
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_TITLE = re.compile(r"class(es)?|class_?names?|category|categories|labels?|names?")
_COLUMN_WORD = re.compile(
    _TITLE.pattern + r"|ids?|idx|index|no|nr|num|number|key|code|uid|class_?ids?|label_?(id|name)s?|target|synsets?|"
    r"wnids?|wordnet|imagenet|title|text|words?|lemmas?|description|definition|prompt|concept|folders?|dir|directory|"
    r"tag|human|readable|display|english|common|scientific|full|short"
)


def spoken(name: str) -> str:
    """Return the pieces that CLIP's tokenizer makes of a name, with spaces between. Equal results give equal tokens.

    The tokenizer repairs broken Unicode, composes letters, reads HTML entities twice over, joins white space, takes
    lower case, and cuts between letters, digits and signs; so "Fish &amp; Chips" and "fish & chips" are one name.
    """
    text = name
    if not (text.isascii() and text.isprintable() and "&" not in text):  # of other texts the repair changes nothing
        import ftfy  # takes a fifth of a second, and `--help` needs no name

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(_pieces().findall(" ".join(text.split()).lower()))


@functools.cache
def _pieces() -> Any:
    import regex

    return regex.compile(_PIECES, regex.IGNORECASE)


def one_form(text: str) -> str:
    """Return the text with composed letters (NFC), in which ids are compared: macOS names files in decomposed ones."""
    return unicodedata.normalize("NFC", text)


class Places(Mapping[str, int]):
    """Class id -> its place in a list. An id in another Unicode form than in the list is the same id."""

    def __init__(self, ids: Sequence[str]) -> None:
        self._as_listed = {class_id: place for place, class_id in enumerate(ids)}
        self._in_one_form: dict[str, int] = {}
        for place, class_id in enumerate(ids):
            if not class_id.isascii():
                self._in_one_form.setdefault(one_form(class_id), place)

    def __getitem__(self, class_id: str) -> int:
        place = self._as_listed.get(class_id)
        return self._in_one_form[one_form(class_id)] if place is None else place

    def __iter__(self) -> Iterator[str]:
        return iter(self._as_listed)

    def __len__(self) -> int:
        return len(self._as_listed)


def is_header(line: str) -> bool:
    """Whether the first line of a class list names columns: all words of both its fields do, and the fields differ.

    A line of one field is a header only where it says nothing but `class`, `label`, `name` or the like.
    """
    fields = [_words(field) for field in line.split("\t") if field.strip()]
    if len(fields) == 1:
        return all(map(_TITLE.fullmatch, fields[0]))
    return all(map(_COLUMN_WORD.fullmatch, set.union(*fields))) and fields[0] != fields[1]


def _words(field: str) -> set[str]:
    """Return the words of a column's title: `class_id`, `Class ID`, `classId` and `#class-id` have the same two."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", field).lower()
    return set(re.split(r"[\s_#\"'.:/()-]+", parted)) - {""} or {field}


def is_bare_id(name: str) -> bool:
    """Whether a name is a WordNet id or a number: a text model hears digits and knows no such thing."""
    no_word = any(map(str.isnumeric, name)) and not any(map(str.isalpha, name))
    return no_word or bool(WORDNET_ID.fullmatch(name))


def has_control(name: str) -> bool:
    """Whether a name has control characters."""
    return any(unicodedata.category(letter) == "Cc" for letter in name)


def has_stray_bytes(name: str) -> bool:
    """Whether a name has bytes that are no UTF-8 (Python keeps them as lone surrogates)."""
    return any(unicodedata.category(letter) == "Cs" for letter in name)


def is_visible(name: str) -> bool:
    """Whether a name has more than spaces and invisible formatting characters."""
    return not {unicodedata.category(letter) for letter in name} <= {"Cf", "Zs", "Zl", "Zp"}
