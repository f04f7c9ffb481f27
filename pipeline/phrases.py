"""Sentences that name an option and leave its spelling to whoever shows them.

The library knows keys: the option `top_k`, the setting `precision`, the folder `out`. How a person gives such a key
differs: the command line has flags, a grid has keys of its tables, Python has arguments. So a message or a hint is a
`Phrase`, a string that remembers which of its parts are options:

    raise UsageError(f"{path} is not empty", hint=phrase("{another out}; nothing was changed"))

As a plain string that hint reads "give another `out`; nothing was changed". `respelled` puts other words in place of
the options; the command line does so when it shows an error, a note or a result. Phrases and strings are joined with
`+`: an f-string around a phrase keeps the plain words and forgets the options.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal

Kind = Literal["option", "setting", "another"]


@dataclass(frozen=True)
class Option:
    """A key that a person gives, as a part of a sentence.

    Args:
        name: the key, as an argument in Python is called: `top_k`.
        value: what is given, or what should be; empty where the sentence names the key alone.
        kind: `option` of a command, `setting` (`key=value`), or `another`: advice to give another value than this time.
    """

    name: str
    value: str = ""
    kind: Kind = "option"

    def __str__(self) -> str:
        if self.kind == "setting":
            return f"`{self.name}={self.value}`"
        named = f"`{self.name}` {self.value}".strip()
        return f"give another {named}" if self.kind == "another" else named


class Phrase(str):
    """A string that remembers which of its parts are options.

    Args:
        parts: strings, options and phrases, in order.
    """

    parts: tuple[str | Option, ...]

    def __new__(cls, *parts: str | Option) -> Phrase:
        """Join the parts; the string itself holds the plain words."""
        flat: list[str | Option] = []
        for part in parts:
            flat.extend(part.parts if isinstance(part, Phrase) else (part,))
        phrase = super().__new__(cls, "".join(map(str, flat)))
        phrase.parts = tuple(part for part in flat if part != "")
        return phrase

    def __getnewargs__(self) -> tuple[str | Option, ...]:  # type: ignore[override]
        """The parts: a copied or pickled phrase keeps its options."""
        return self.parts

    def __add__(self, other: str) -> Phrase:
        return Phrase(self, other)

    def __radd__(self, other: str) -> Phrase:
        return Phrase(other, self)

    def join(self, words: Iterable[str], /) -> Phrase:
        """The words with this phrase between each two; their options are kept."""
        joined: list[str] = []
        for word in words:
            joined += [self, word] if joined else [word]
        return Phrase(*joined)


def phrase(template: str) -> Phrase:
    """A sentence written in one piece: `{top_k}` is an option, `{tail=none}` a setting, `{another out}` such advice.

    It takes no other values: what is only known when the sentence is made is added with `+`.
    """
    parts: list[str | Option] = []
    for text, field, _, _ in Formatter().parse(template):
        parts.append(text)
        if field:
            key, equals, value = field.partition("=")
            advice = field.removeprefix("another ")
            parts.append(Option(key, value, "setting") if equals else Option(advice, kind=_kind(advice, field)))
    return Phrase(*parts)


def _kind(name: str, field: str) -> Kind:
    return "option" if name == field else "another"


def option(name: str, value: object = "") -> Phrase:
    """An option of a command, with a value if one is meant."""
    return Phrase(Option(name, str(value)))


def setting(key: str, value: object) -> Phrase:
    """A setting with a value: `key=value`."""
    return Phrase(Option(key, str(value), "setting"))


def another(name: str) -> Phrase:
    """The advice to give another value of an option; whoever gave it for the person may advise otherwise."""
    return Phrase(Option(name, kind="another"))


def command_line(verb: str, *arguments: str, **options: str) -> Phrase:
    """A command of this program as a shell takes it: verb, arguments, then options with their values."""
    given = [Phrase(option(name), f" {shlex.quote(value)}") for name, value in options.items()]
    return Phrase(" ").join([shlex.join(["teachonce", verb, *arguments]), *given])


def options_of(text: str) -> tuple[Option, ...]:
    """The options that a text names; none where it is a plain string."""
    return tuple(part for part in text.parts if isinstance(part, Option)) if isinstance(text, Phrase) else ()


def respelled(text: str, spell: Callable[[Option], str | Option]) -> str:
    """The text with other words for its options.

    Args:
        text: a phrase, or a plain string, which stays as it is.
        spell: the words for one option, or the option itself where they are left to someone else.
    """
    if not isinstance(text, Phrase):
        return text
    return Phrase(*(spell(part) if isinstance(part, Option) else part for part in text.parts))


def to_json(text: str) -> list[Any]:
    """A text as it is kept in a JSON document: strings, and `[name, value, kind]` for options."""
    parts = text.parts if isinstance(text, Phrase) else (text,)
    return [[part.name, part.value, part.kind] if isinstance(part, Option) else part for part in parts]


def from_json(parts: Sequence[Any]) -> Phrase:
    """What `to_json` wrote.

    Raises:
        ValueError: it wrote something else.
    """
    for part in parts if isinstance(parts, list) else [None]:
        option = isinstance(part, list) and len(part) == 3 and all(isinstance(word, str) for word in part)
        if not option and not isinstance(part, str):
            raise ValueError(f"{part!r} is no part of a sentence")
    return Phrase(*(part if isinstance(part, str) else Option(*part) for part in parts))
