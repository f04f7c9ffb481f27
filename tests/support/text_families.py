"""Small random CLIPs with the text towers that people use beside OpenAI's: masks, pooling and tokenizers as there.

It tests nothing. The tokenizers have the classes and settings of the releases; their words are those of a few texts and
are learnt here, so that nothing is fetched.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from tower_reference import VISION, randomised

SPOKEN = (
    "a photo of a great white shark .",
    "itap of a red fox , a type of animal !",
    "Boeing seven four seven and a blue jay",
    "many old ships , a jack o lantern and some ice cream",
)
_TINY = {"width": 36, "heads": 3, "layers": 3}  # odd: no power of two
_SIGLIP = {**_TINY, "context_length": 24, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
_SIGLIP |= {"norm_kwargs": {"eps": 1e-6}}
_CANONICAL = {"clean": "canonicalize"}

# family: (files of its tokenizer, settings of its class, how open_clip wraps it, text config)
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "siglip": ("t5", {"tokenizer_class": "T5Tokenizer", "pad_token": "</s>", "extra_ids": 0}, _CANONICAL, _SIGLIP),
    "siglip2": (
        "gemma",
        {"tokenizer_class": "GemmaTokenizer", "padding_side": "right", "add_bos_token": False, "add_eos_token": True},
        _CANONICAL,
        {**_SIGLIP, "act_kwargs": {"approximate": "tanh"}},
    ),
    "clipa": (
        "bert",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
        {"strip_sep_token": True},
        {**_TINY, "context_length": 20, "no_causal_mask": True, "pool_type": "last"},
    ),
    "metaclip2-mt5": (
        "t5",
        {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "extra_ids": 0},
        _CANONICAL,
        {**_TINY, "context_length": 24, "pool_type": "eos", "eos_id": 1},
    ),
    "metaclip2-xlm": (
        "xlm",
        {"tokenizer_class": "XLMRobertaTokenizer"},
        {},
        {**_TINY, "context_length": 24, "pool_type": "eos", "eos_id": 2},
    ),
    "mobileclip": ("clip", {}, {}, {**_TINY, "no_causal_mask": True}),
    "coca": ("clip", {}, {}, {**_TINY, "context_length": 76, "embed_cls": True, "output_tokens": True}),
    "first": ("clip", {}, {}, {**_TINY, "context_length": 20, "no_causal_mask": True, "pool_type": "first"}),
}
CAUSAL = ("metaclip2-mt5", "metaclip2-xlm", "coca")
_COCA_VISION = {"attentional_pool": True, "output_tokens": True}
_COCA_CAPTIONS = {"width": 32, "heads": 2, "layers": 1}
_PLAIN_CLIP = ("clipa", "metaclip2-mt5", "metaclip2-xlm")  # the others are CustomTextCLIPs


@functools.cache
def family_clip(family: str, double: bool = False, **text_changes: Any) -> tuple[nn.Module, Any]:
    """A model of `FAMILIES` and its tokenizer; made once, and to be left as it is."""
    kind, settings, wrapping, text = FAMILIES[family]
    text = {**text, **text_changes}
    room = text.get("context_length", 77)
    if kind == "clip":
        words: Any = open_clip.SimpleTokenizer(context_length=room)
    else:
        words = _hugging_face(kind, tuple(settings.items()), tuple(wrapping.items()), room)
        text["vocab_size"] = len(words.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(family))
        if family == "coca":
            model: nn.Module = open_clip.CoCa(24, dict(_COCA_CAPTIONS), text, {**VISION, **_COCA_VISION})
        else:
            made = open_clip.CLIP if family in _PLAIN_CLIP else open_clip.CustomTextCLIP
            model = made(24, dict(VISION), text)
    randomised(model, torch.Generator().manual_seed(len(family)))
    return (model.double() if double else model), words


def write_family_clip(folder: Path, family: str) -> str:
    """The model of `family_clip` as an open_clip folder; returns its spec."""
    from safetensors.torch import save_file

    model, words = family_clip(family)
    kind, _, wrapping, text = FAMILIES[family]
    folder.mkdir(parents=True)
    config: dict[str, Any] = {"embed_dim": 24, "vision_cfg": dict(VISION), "custom_text": family not in _PLAIN_CLIP}
    if family == "coca":
        config["vision_cfg"] |= _COCA_VISION
        config["multimodal_cfg"] = _COCA_CAPTIONS
    if kind != "clip":
        text = {**text, "hf_tokenizer_name": f"someone/{family}", "tokenizer_kwargs": wrapping}
        text["vocab_size"] = len(words.tokenizer)
        words.save_pretrained(folder)
    config["text_cfg"] = text
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    weights = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@functools.cache
def _hugging_face(
    kind: str, settings: tuple[tuple[str, Any], ...], wrapping: tuple[tuple[str, Any], ...], room: int
) -> Any:
    """open_clip's wrapper of a tokenizer of transformers; the test is skipped where they are not installed."""
    pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    with tempfile.TemporaryDirectory() as folder:
        name, data = _MAKERS[kind]()
        (Path(folder) / name).write_bytes(data)
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(dict(settings)))
        return open_clip.tokenizer.HFTokenizer(folder, context_length=room, **dict(wrapping))


def _pieces(**options: Any) -> bytes:
    """A SentencePiece model of `SPOKEN`. Only what is part of several words becomes a piece: hence words with an s."""
    import sentencepiece

    model = io.BytesIO()
    plural = [" ".join(word + "s" for word in line.split()) for line in SPOKEN]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for line in (*SPOKEN, *plural) for text in (line, line.lower())] * 20),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def _word_pieces() -> bytes:
    words = sorted({word for line in SPOKEN for word in line.lower().split()})
    letters = sorted({letter for word in words for letter in word})
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return "\n".join([*specials, *dict.fromkeys([*letters, *words]), *("##" + x for x in letters)]).encode()


_MAKERS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "t5": lambda: (
        "spiece.model",
        _pieces(model_type="unigram", vocab_size=180, pad_id=0, eos_id=1, bos_id=-1, unk_id=2),
    ),
    "gemma": lambda: (
        "tokenizer.model",
        _pieces(
            model_type="bpe",
            vocab_size=420,
            byte_fallback=True,
            add_dummy_prefix=False,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            eos_piece="<eos>",
            bos_piece="<bos>",
        ),
    ),
    "bert": lambda: ("vocab.txt", _word_pieces()),
    "xlm": lambda: (
        "sentencepiece.bpe.model",
        _pieces(model_type="unigram", vocab_size=180, bos_id=1, eos_id=2, unk_id=0),
    ),
}
