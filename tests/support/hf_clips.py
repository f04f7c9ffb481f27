"""Tiny random CLIPs of the families whose tokenizer or text tower comes from transformers, as open_clip folders.

It tests nothing. Towers, poolings, tokenizer classes and the tokenizers' files are those of the releases; weights,
widths and vocabularies are not. Everything is made here: no file comes from a hub.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAMILIES = ("siglip", "siglip2", "clipa", "metaclip2", "nllb", "roberta", "xlm-roberta")
HF_TOWERS = ("nllb", "roberta", "xlm-roberta")
_TEXTS = (
    "a photo of a red fox .",
    "a photo of a blue jay .",
    "a green snake and a crane ,",
    "Yellow Bus , cup of tea , piano",
    "itap of my words : naming things by hand !",
)
_SQUASH = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
_PLAIN_VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
_PLAIN_TEXT = {"width": 32, "heads": 2, "layers": 2}


def make_hf_clip(
    folder: Path, family: str, seed: int = 1, logit_bias: float = -9.5, timm_name: str | None = None
) -> str:
    """Write a small random CLIP of a family, with its tokenizer, as an open_clip folder; returns its spec.

    Args:
        folder: is made.
        family: of `FAMILIES`.
        seed: of the weights.
        logit_bias: of the SigLIPs, as if trained; their config announces -10.
        timm_name: of an image tower in place of the family's own.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = _config(family, _write_tokenizer(folder, family), folder)
    if timm_name is not None:
        vision = {"image_size": 32, "timm_model_name": timm_name, "timm_pool": "", "timm_proj": "linear"}
        config["model_cfg"]["vision_cfg"] = vision
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model_config = json.loads(json.dumps(config["model_cfg"]))
    custom = model_config.pop("custom_text", False) or family in HF_TOWERS
    if family in HF_TOWERS:
        name = model_config["text_cfg"]["hf_model_name"]
        model_config["text_cfg"] |= {"hf_model_name": str(folder / name), "hf_model_pretrained": False}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**model_config)
        _scatter(model, logit_bias)
    weights = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def _scatter(model: Any, logit_bias: float) -> None:
    """Draw weights so that features of different inputs differ clearly."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name == "logit_scale":
                weight.fill_(3.0)
            elif name == "logit_bias":
                weight.fill_(logit_bias)
            elif "embed" in name or name.endswith("proj"):
                weight.normal_(0, 0.5)
            elif weight.ndim >= 2:
                weight.normal_(0, 1.5 / weight[0].numel() ** 0.5)


def _config(family: str, words: int, folder: Path) -> dict[str, Any]:
    """The folder's open_clip_config.json, with the keys that the releases of the family have."""
    named: dict[str, Any] = {"vocab_size": words, "hf_tokenizer_name": f"someone/{family}"}
    if family in HF_TOWERS:
        text = named | {"hf_model_name": f"someone/{family}", **_write_text_config(folder, family, words)}
        del text["vocab_size"]
        return {"model_cfg": {"embed_dim": 20, "vision_cfg": _PLAIN_VISION, "text_cfg": text}, "preprocess_cfg": {}}
    if family == "clipa":
        vision = _PLAIN_VISION | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
        text = named | {"context_length": 32, "tokenizer_kwargs": {"strip_sep_token": True}, "no_causal_mask": True}
        model = {"vision_cfg": vision, "text_cfg": text | {"pool_type": "last"}}
    elif family == "metaclip2":
        text = named | {"context_length": 77, "pool_type": "eos", "eos_id": 2}
        model = {"quick_gelu": True, "vision_cfg": _PLAIN_VISION, "text_cfg": text}
    else:
        vision = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}
        text = named | {"context_length": 64, "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True}
        text |= {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
        if family == "siglip2":
            text["act_kwargs"] = {"approximate": "tanh"}
        model = {"init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    width = 64 if family.startswith("siglip") else 20  # timm's test_vit has 64 and no projection
    model["text_cfg"] |= _PLAIN_TEXT
    return {"model_cfg": {"embed_dim": width, **model}, "preprocess_cfg": _SQUASH}


def _write_text_config(folder: Path, family: str, words: int) -> dict[str, Any]:
    """Write the config of a text tower of transformers where `hf_model_name` finds it; returns its other keys."""
    sizes: dict[str, Any] = {"vocab_size": words}
    if family == "nllb":
        sizes |= {"model_type": "m2m_100", "d_model": 24, "encoder_layers": 2, "decoder_layers": 1}
        sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 40}
        sizes |= {"decoder_ffn_dim": 40, "max_position_embeddings": 128, "is_encoder_decoder": True}
        sizes |= {"pad_token_id": 1, "scale_embedding": True, "activation_function": "relu"}
        keys = {"hf_proj_type": "linear", "hf_pooler_type": "cls_pooler"}
    else:
        sizes |= {"model_type": family, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 40, "max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1}
        keys = {"hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}
    path = folder / "someone" / family / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(sizes))
    return keys


def _write_tokenizer(folder: Path, family: str) -> int:
    """Write the tokenizer's files as the family's releases have them; returns how many ids it has."""
    makers: dict[str, Callable[[], dict[str, bytes]]] = {
        "siglip": lambda: {"spiece.model": _pieces("unigram", pad_id=0, eos_id=1, bos_id=-1, unk_id=2)},
        "siglip2": lambda: {"tokenizer.model": _pieces("bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3)},
        "clipa": lambda: {"vocab.txt": "\n".join(_word_pieces()).encode()},
        "metaclip2": lambda: {"sentencepiece.bpe.model": _pieces("unigram", bos_id=1, eos_id=2, unk_id=0)},
        "nllb": lambda: {
            "sentencepiece.bpe.model": _pieces("bpe", bos_id=1, eos_id=2, unk_id=0, user_defined_symbols=["eng_Latn"])
        },
        "roberta": _byte_pairs,
        "xlm-roberta": lambda: {"sentencepiece.bpe.model": _pieces("unigram", bos_id=1, eos_id=2, unk_id=0)},
    }
    said: dict[str, dict[str, Any]] = {
        "siglip": {"tokenizer_class": "T5Tokenizer", "pad_token": "</s>", "eos_token": "</s>", "extra_ids": 0},
        "siglip2": {
            "tokenizer_class": "GemmaTokenizer",
            "padding_side": "right",
            "add_bos_token": False,
            "add_eos_token": True,
        },
        "clipa": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
        "nllb": {"tokenizer_class": "NllbTokenizer", "src_lang": "eng_Latn"},
        "roberta": {"tokenizer_class": "RobertaTokenizer"},
    }
    for name, data in makers[family]().items():
        (folder / name).write_bytes(data)
    config = said.get(family, {"tokenizer_class": "XLMRobertaTokenizer"})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))

    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(str(folder)))


def _pieces(kind: str, **ids: Any) -> bytes:
    """A SentencePiece model of a few texts."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXTS * 20),
        model_writer=model,
        model_type=kind,
        vocab_size=400 if kind == "bpe" else 80,
        hard_vocab_limit=False,
        byte_fallback=kind == "bpe",
        minloglevel=2,
        **ids,
    )
    return model.getvalue()


def _word_pieces() -> list[str]:
    letters = sorted({letter for text in _TEXTS for letter in text.lower() if letter.isalpha()})
    words = sorted({word for text in _TEXTS for word in text.lower().split()})
    return [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *dict.fromkeys([*letters, *words]),
        *("##" + x for x in letters),
    ]


def _byte_pairs() -> dict[str, bytes]:
    from tokenizers import ByteLevelBPETokenizer

    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(
        list(_TEXTS), vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    document = json.loads(pairs.to_str())["model"]
    merges = "\n".join(" ".join(pair) for pair in document["merges"])
    return {"vocab.json": json.dumps(document["vocab"]).encode(), "merges.txt": f"#version: 0.2\n{merges}\n".encode()}
