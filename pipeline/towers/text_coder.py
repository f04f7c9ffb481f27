"""How a model's tokenizer turns words into ids, and what it puts around them.

Two kinds of open_clip's tokenizers are known: CLIP's own, and those of transformers, which open_clip wraps (`hf`). Both
clean a text first (lower case, punctuation, spaces: as the model says), and lay it out as start, words, end, padding.
Whether a tokenizer really does so is tried on some texts before any prompt is trained with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from teachonce.errors import UnsupportedModelError

_ANCHOR = "a"  # a word that stands before others, to see which ids those have in the middle of a text
_TRIED = ("a", "dog", "a dog")
_ROOM = 24  # positions in which these texts are tried


@dataclass(frozen=True, eq=False)
class TextCoder:
    """A tokenizer whose texts are start, words, end and padding.

    Some tokenizers give the first word of a text another id than the same word in the middle: `follows` says where the
    words stand.
    """

    start: tuple[int, ...]  # no id or one
    end: tuple[int, ...]  # one id; more where a tower wants more behind a text
    padding: int
    reserved: frozenset[int]  # ids with a meaning of their own, which no words may have
    end_is_highest: (
        bool  # whether no other id is as high as the end's, which open_clip's `argmax` pooling takes for given
    )
    positional: bool  # whether words in the middle of a text may have other ids than at its beginning
    encode_all: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]

    @classmethod
    def of(cls, tokenizer: Any) -> TextCoder:
        """Learn the layout from a tokenizer.

        Raises:
            UnsupportedModelError: it lays texts out in another way.
        """
        coder = (_of_clip if hasattr(tokenizer, "sot_token_id") else _of_transformers)(cls, tokenizer)
        if coder is None or not coder._lays_out(tokenizer):
            raise _other_tokenizer(tokenizer)
        return coder

    def encode(self, texts: Sequence[str], follows: bool = False) -> list[list[int]]:
        """Return the ids of the words of each text, without start and end.

        Args:
            follows: other words, and a space, stand before each text.

        Raises:
            UnsupportedModelError: the tokenizer joins words across a space.
        """
        if not (follows and self.positional):
            return self.encode_all(texts)
        return self._behind(_ANCHOR + " ", texts)

    def encode_ending(self, ending: str) -> list[int]:
        """Return the ids of an ending such as `.`, which stands right behind a word."""
        return self._behind(_ANCHOR, [ending])[0] if self.positional else self.encode_all([ending])[0]

    def _behind(self, before: str, texts: Sequence[str]) -> list[list[int]]:
        anchor = self.encode_all([_ANCHOR])[0]
        rows = self.encode_all([before + text for text in texts])
        for text, row in zip(texts, rows, strict=True):
            if row[: len(anchor)] != anchor:
                raise UnsupportedModelError(
                    f"this model's text tower cannot carry prompts: its tokenizer joins {text!r} to the word before it"
                )
        return [row[len(anchor) :] for row in rows]

    def _lays_out(self, tokenizer: Any) -> bool:
        """Whether the tokenizer gives for some texts what this coder says."""
        if len(self.start) > 1 or len(self.end) != 1:
            return False
        rows = tokenizer(list(_TRIED), context_length=_ROOM).tolist()
        for ids, row in zip(self.encode_all(_TRIED), rows, strict=True):
            whole = [*self.start, *ids, *self.end]
            if whole + [self.padding] * (_ROOM - len(whole)) != row:
                return False
        return True


def _of_clip(cls: type[TextCoder], tokenizer: Any) -> TextCoder | None:
    specials = [getattr(tokenizer, name, None) for name in ("sot_token_id", "eot_token_id")]
    known = callable(tokenizer) and callable(getattr(tokenizer, "encode", None))
    if not known or not all(isinstance(token, int) for token in specials):
        return None
    start, end = (int(token) for token in specials if token is not None)
    if start > end:
        return None
    return cls(
        start=(start,),
        end=(end,),
        padding=0,
        reserved=frozenset([start, end, *getattr(tokenizer, "all_special_ids", ())]),
        end_is_highest=True,
        positional=False,
        encode_all=lambda texts: [list(tokenizer.encode(text)) for text in texts],
        decode=lambda ids: str(tokenizer.decode(list(ids))).strip(),
    )


def _of_transformers(cls: type[TextCoder], tokenizer: Any) -> TextCoder | None:
    inner, clean = getattr(tokenizer, "tokenizer", None), getattr(tokenizer, "clean_fn", None)
    if inner is None or clean is None or getattr(tokenizer, "tokenizer_mode", None) or inner.pad_token_id is None:
        return None
    emptied = inner.sep_token_id if getattr(tokenizer, "strip_sep_token", None) else None

    def encode_all(texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = inner([clean(text) for text in texts], add_special_tokens=False)["input_ids"]
        return rows

    plain, full = encode_all(_TRIED[-1:])[0], list(inner(clean(_TRIED[-1]))["input_ids"])
    begins = [i for i in range(len(full)) if full[i : i + len(plain)] == plain]
    if not plain or not begins:
        return None
    full = [0 if token == emptied else token for token in full]
    end = tuple(full[begins[0] + len(plain) :])
    return cls(
        start=tuple(full[: begins[0]]),
        end=end,
        padding=int(inner.pad_token_id),
        reserved=frozenset(inner.all_special_ids) - {inner.unk_token_id},
        end_is_highest=end == (max(inner.get_vocab().values()),),
        positional=True,
        encode_all=encode_all,
        decode=lambda ids: str(inner.decode(list(ids))).strip(),
    )


def _other_tokenizer(tokenizer: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"this model's text tower cannot carry prompts: it has a tokenizer of class {type(tokenizer).__name__}, whose "
        "texts are not start token, words, end token, padding; supported: CLIP's tokenizer and those of transformers "
        "that do so"
    )
