"""The parts of an open_clip text tower, and what about a tower keeps prompts out.

This module runs nothing. Its checks look at the structure only, so that they hold for models without weights (on the
meta device) and without a tokenizer.

Shapes: D width, E embedding, P positions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn

from teachonce.errors import UnsupportedModelError
from teachonce.towers.blocks import fuse_activation

Pool = Literal["highest", "end", "first", "last", "class"]
"""Which position becomes the feature: that of the highest id (open_clip's `argmax`), of the first end token (`eos`),
the first or last of the context, or a class token behind the text."""

SUPPORTED = (
    "supported: CLIP, CustomTextCLIP and CoCa towers of plain blocks, causal and pooled at the end token or at a class "
    "token, or without a mask and pooled at one position"
)
_POOLS: dict[str, Pool] = {"argmax": "highest", "eos": "end", "first": "first", "last": "last"}


@dataclass(frozen=True, eq=False)
class ClassToken:
    """A token behind the text that sees the whole text and becomes the feature (CoCa, arXiv 2205.01917)."""

    embedding: Tensor  # [D], without position; its position is the tower's last
    shifted: bool
    """Whether its mask is the one of the released CoCa weights, which is one position off: the class token sees the
    first padding behind the text, and does not see itself."""
    padding: int  # the id that its mask takes for padding


@dataclass(frozen=True, eq=False)
class TextParts:
    """The modules of a text tower and what is done with them; no weight is copied."""

    token_embedding: nn.Embedding
    positional_embedding: Tensor  # [P, D]
    blocks: tuple[Any, ...]
    ln_final: nn.Module
    projection: nn.Module | Tensor | None
    causal: bool  # else every position sees every other one, padding too
    pool: Pool
    eos: int | None  # the token at which `end` pools
    class_token: ClassToken | None = None
    _prepared: dict[Any, TextParts] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module) -> TextParts:
        """Take the text tower out of a model and freeze it (`requires_grad_(False)`).

        Raises:
            UnsupportedModelError: prompts cannot enter the tower; the message names what is in their way.
        """
        obstacle = structure_obstacle(model)
        if obstacle is not None:
            raise unsupported(obstacle)
        text = _text_part(model)
        parts = (text.token_embedding, text.positional_embedding, text.transformer, text.ln_final, text.text_projection)
        for part in parts:
            if part is not None:
                part.requires_grad_(False)
        embedding, position, transformer, ln_final, projection = parts
        class_token, pool = None, _POOLS.get(_setting(model, text, "pool_type"), "last")
        if getattr(text, "cls_emb", None) is not None:
            text.cls_emb.requires_grad_(False)
            class_token, pool = ClassToken(text.cls_emb, not text.correct_cls_mask, text.pad_id), "class"
        eos = _setting(model, text, "eos_id") if pool == "end" else None
        blocks = tuple(transformer.resblocks)
        causal = text.attn_mask is not None
        return cls(embedding, position, blocks, ln_final, projection, causal, pool, eos, class_token)

    @property
    def positions(self) -> int:
        """How many positions a text has: 77 for CLIP. A class token stands behind them."""
        return self.positional_embedding.shape[0] - (self.class_token is not None)

    @property
    def autocast_type(self) -> torch.dtype | None:
        """The type of products as things are; None without autocast."""
        kind = self.positional_embedding.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def prepared(self) -> TextParts:
        """The same parts as a forward pass uses them; these parts where nothing is to be prepared.

        Under autocast the matrices have the type that products have, which autocast itself would give frozen matrices
        anew at every use; the results have the same bits, since what autocast keeps in float32, such as norms, has its
        weights as they are. On a GPU QuickGELU is one kernel (see `fuse_activation`), equal up to rounding.
        """
        weight = self.positional_embedding
        kind = self.autocast_type if weight.dtype == torch.float32 else None
        fused = fuses_activations(weight.device)
        if kind is None and not fused:
            return self
        key = (kind, weight.device, weight.dtype)
        if key not in self._prepared:
            with torch.inference_mode(False), torch.no_grad():  # plain tensors: they enter graphs later
                self._prepared[key] = self._prepare(kind, fused)
        return self._prepared[key]

    def _prepare(self, kind: torch.dtype | None, fused: bool) -> TextParts:
        blocks = tuple(
            copy.deepcopy(block, {id(weight): weight for weight in block.parameters()}) for block in self.blocks
        )
        for block in blocks:  # which share their weights with the given ones, up to here
            if fused:
                fuse_activation(block)
            for part in block.modules() if kind is not None else ():
                if isinstance(part, (nn.Linear, nn.MultiheadAttention)):
                    for name, weight in list(part.named_parameters(recurse=False)):
                        setattr(part, name, nn.Parameter(weight.to(kind), requires_grad=False))
        projection = self.projection
        if isinstance(projection, Tensor) and kind is not None:
            projection = projection.to(kind)
        return replace(self, blocks=blocks, projection=projection, _prepared={})

    def embed(self, features_CD: Tensor) -> Tensor:
        """Take the pooled states of the last block to the joint embedding, [C, E], not yet of unit length."""
        pooled = self.ln_final(features_CD)
        if isinstance(self.projection, nn.Module):
            projected: Tensor = self.projection(pooled)
            return projected
        out: Tensor = pooled if self.projection is None else pooled @ self.projection
        return out


def fuses_activations(device: torch.device) -> bool:
    """Whether QuickGELU is made one kernel; on a CPU it stays as open_clip has it, so that no bit changes."""
    return device.type != "cpu"


def structure_obstacle(model: nn.Module) -> str | None:
    """Say what in the structure of a model's text tower keeps prompts out; None where they can enter.

    It reads values only where there are some: on the meta device a mask counts as the causal one that open_clip builds.
    """
    text = _text_part(model)
    if text is None:
        custom = isinstance(model, (open_clip.CustomTextCLIP, open_clip.CoCa))
        return f"a tower of class {type(model.text if custom else model).__name__}"
    return _mask_obstacle(model, text) or _block_obstacle(text)


def unsupported(obstacle: str) -> UnsupportedModelError:
    """The error that says what is in the way of prompts in a text tower."""
    return UnsupportedModelError(f"this model's text tower cannot carry prompts: it has {obstacle}; {SUPPORTED}")


def _text_part(model: nn.Module) -> Any:
    """The module whose attributes are the text tower's parts; None where there is no such module."""
    if isinstance(model, open_clip.CLIP):
        return model
    custom = isinstance(model, (open_clip.CustomTextCLIP, open_clip.CoCa))
    return model.text if custom and type(model.text) is TextTransformer else None


def _setting(model: nn.Module, text: Any, name: str) -> Any:
    """A setting of the tower: open_clip's CLIP keeps it under a longer name."""
    return getattr(text, f"text_{name}" if text is model else name)


def _mask_obstacle(model: nn.Module, text: Any) -> str | None:
    pool, mask = _setting(model, text, "pool_type"), text.attn_mask
    class_token = text is not model and text.cls_emb is not None
    if mask is None:
        if class_token:
            return "a class token after the text (cls_emb) and no causal mask"
        if getattr(text, "use_pad_mask", False):
            return "a mask over padding (use_pad_mask)"
        return None if pool in _POOLS else f"pooling of type '{pool}'"
    if not mask.is_meta and not torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1)):
        return "a mask that is not the causal one"
    if class_token or pool in ("argmax", "eos"):
        return None
    return f"a causal mask and pooling of type '{pool}'"


def _block_obstacle(text: Any) -> str | None:
    for block in text.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            return f"blocks of class {type(block).__name__}"
    for parameter in text.transformer.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            return f"weights in {parameter.dtype}; load the model in float32 and use autocast"
    return None
