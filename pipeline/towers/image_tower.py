"""Run CLIP's frozen vision transformer with prompt slots behind its patches.

This module trains nothing (`learner` says what is learned), reads no images and refuses towers of another make.

The tokens are [class] patches slots; slots have no position. Without a gate every token sees every other in one softmax
(VPT, arXiv 2203.12119): a slot's query depends on the image, so query prompts carry information. With a gate, class and
patches see each other as in the frozen tower, and the slots through a softmax of their own times tanh(g_l)
(LLaMA-Adapter, arXiv 2303.16199): at g = 0 this is the frozen tower to the bit, whatever the slots hold. The slots
themselves see all tokens either way.

Shapes: B images, N tokens of the image (class and patches), M slots, T = N + M, R tokens that go on, L blocks, D width,
H heads, d = D / H, E embedding. Slot states are [1, M, D] until they have seen an image, then [B, M, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.errors import TeachOnceError, UnsupportedModelError
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Letter

_SUPPORTED = "supported: open_clip's own VisionTransformer of plain blocks, pooled at its class token or over patches"
_PLACE: dict[Letter, int] = {"query": 0, "key": 1, "value": 2}  # rows of a block's joint projection


@dataclass(frozen=True, eq=False)
class ImageTower:
    """The frozen image tower of an open_clip model, which refers to the model's own modules and copies no weights."""

    visual: Any
    blocks: tuple[Any, ...]

    @classmethod
    def from_clip(cls, model: nn.Module) -> ImageTower:
        """Take the image tower out of a model and freeze it (`requires_grad_(False)`).

        Raises:
            UnsupportedModelError: the tower is no plain vision transformer; the message names the difference.
        """
        obstacle = image_obstacle(model)
        if obstacle is not None:
            raise _unsupported(obstacle)
        visual: Any = model.visual
        visual.requires_grad_(False)
        return cls(visual, tuple(visual.transformer.resblocks))

    @property
    def width(self) -> int:
        """D."""
        return int(self.visual.positional_embedding.shape[1])

    @property
    def layers(self) -> int:
        """L."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        place: torch.device = self.visual.positional_embedding.device
        return place

    def features(self, prompts: SlotPrompts | None, pixels: Tensor) -> Tensor:
        """Compute unit image features, differentiable in the prompts.

        Without prompts, or without slots, the features equal `encode_image`'s up to rounding.

        Args:
            prompts: on the tower's device.
            pixels: [B, 3, H, W] as the model's own preprocessing gives it, on the tower's device.

        Returns:
            [B, E] float32, under autocast too (float64 from a tower in float64).

        Raises:
            TeachOnceError: the shapes of prompts or images do not fit the tower.
        """
        if prompts is not None:
            prompts.require_fit(self.layers, self.width, gated=True)
            prompts = prompts if prompts.slots else None
        x_BRD, h_BMD = self._tokens(pixels), _first_state(prompts)
        for index in range(self.layers):
            x_BRD, h_BMD = self._block(index, x_BRD, prompts, h_BMD)
        pooled = self._pool(x_BRD)
        return F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)

    def patch_scales(self) -> Tensor:
        """Measure how large the states of the patches are at the input of every block, for one grey image, [L].

        sigma_l = sqrt(mean over patches n and units i of (x_lni - mean_i x_lni)^2), that is, centred over the width:
        the norm before attention drops each position's mean, so a shift does not count.
        """
        patches = torch.stack([x_1ND[0, 1:] for x_1ND, _ in self._grey_states(None)])
        return patches.var(-1, correction=0).mean(-1).sqrt()

    def block_inputs(self, prompts: SlotPrompts) -> Tensor:
        """Return the slots' states at the input of every block for one grey image, of carried prompts, [L, M, D].

        Another image gives other states: no constant replaces them exactly, as one does in a causal text tower.
        """
        prompts.require_fit(self.layers, self.width, gated=True)
        return torch.stack([h_1MD[0] for _, h_1MD in self._grey_states(prompts) if h_1MD is not None])

    @torch.no_grad()
    def _grey_states(self, prompts: SlotPrompts | None) -> list[tuple[Tensor, Tensor | None]]:
        """Return what enters every block, image and slots, for an image of the mean colour of the training images.

        All preprocessing takes that colour to zero.
        """
        with torch.autocast(self.device.type, enabled=False):
            x_1ND = self._tokens(self.visual.conv1.weight.new_zeros(1, 3, *self.visual.image_size))
            states = [(x_1ND, _first_state(prompts))]
            for index in range(self.layers - 1):
                states.append(self._block(index, states[-1][0], prompts, states[-1][1]))
        return states

    def _block(
        self, index: int, x_BND: Tensor, prompts: SlotPrompts | None, h_BMD: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run one block; of the last block only the pooled tokens are computed, and no slots."""
        block, last = self.blocks[index], index == self.layers - 1
        rows = self._pooled if last else slice(None)
        if prompts is None:
            return _frozen_block(block, x_BND, rows), None
        return _prompted_block(block, index, x_BND, rows, prompts, h_BMD, last)

    @property
    def _pooled(self) -> slice:
        """The tokens that pooling reads."""
        return slice(0, 1) if self.visual.pool_type == "tok" else slice(1, None)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Return class token and patches as they enter the first block, [B, N, D]."""
        visual = self.visual
        size = (3, *visual.image_size)
        if pixels.ndim != 4 or pixels.shape[1:] != size:
            raise TeachOnceError(f"images of shape {tuple(pixels.shape)} do not fit a tower for {('B', *size)}")
        patches: Tensor = visual.conv1(pixels).flatten(2).transpose(1, 2)
        start = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x_BND = torch.cat([start, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
        out: Tensor = visual.ln_pre(x_BND)
        return out

    def _pool(self, x_BRD: Tensor) -> Tensor:
        """Map what the last block gives to the joint embedding, [B, E]."""
        ln_post, proj = self.visual.ln_post, self.visual.proj
        pooled: Tensor = ln_post(x_BRD.mean(1)) if self.visual.final_ln_after_pool else ln_post(x_BRD).mean(1)
        return pooled if proj is None else pooled @ proj


def _first_state(prompts: SlotPrompts | None) -> Tensor | None:
    return None if prompts is None or prompts.context is None else prompts.context[None]


def _frozen_block(block: Any, x_BND: Tensor, rows: slice) -> Tensor:
    """Run one block without slots at some of its tokens, [B, R, D]."""
    q_BHRd, k_BHNd, v_BHNd = _letters(block, x_BND, rows)
    return _finish(block, x_BND[:, rows], F.scaled_dot_product_attention(q_BHRd, k_BHNd, v_BHNd))


def _prompted_block(
    block: Any, index: int, x_BND: Tensor, rows: slice, prompts: SlotPrompts, h_BMD: Tensor | None, last: bool
) -> tuple[Tensor, Tensor | None]:
    """Run one block: some tokens of the image, [B, R, D], and the slots, [B, M, D]; None if nothing reads the slots."""
    attend = F.scaled_dot_product_attention
    q_BHRd, k_BHNd, v_BHNd = _letters(block, x_BND, rows)
    k_BHMd, v_BHMd = (_at_slots(block, x, index, prompts, h_BMD, len(x_BND)) for x in ("key", "value"))
    k_BHTd, v_BHTd = torch.cat([k_BHNd, k_BHMd], 2), torch.cat([v_BHNd, v_BHMd], 2)
    if prompts.gate is None:
        mixed_BHRd = attend(q_BHRd, k_BHTd, v_BHTd)
    else:
        from_slots = attend(q_BHRd, k_BHMd, v_BHMd)
        mixed_BHRd = attend(q_BHRd, k_BHNd, v_BHNd) + prompts.gate[index].tanh() * from_slots
    x_BRD = _finish(block, x_BND[:, rows], mixed_BHRd)
    if last or index < prompts.entry:
        return x_BRD, None
    q_BHMd = _at_slots(block, "query", index, prompts, h_BMD, len(x_BND))
    h_BMD = prompts.enter("residual", index, h_BMD)
    return x_BRD, _finish(block, h_BMD, attend(q_BHMd, k_BHTd, v_BHTd))


def _letters(block: Any, x_BND: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Compute queries of some of the image's tokens, and keys and values of all its tokens."""
    normed = block.ln_1(x_BND)
    return _project(block, "query", normed[:, rows]), _project(block, "key", normed), _project(block, "value", normed)


def _at_slots(
    block: Any, letter: Letter, index: int, prompts: SlotPrompts, h_BMD: Tensor | None, images: int
) -> Tensor:
    """Compute query, key or value at the slots, [B, H, M, d]; once where all images have the same."""
    states = prompts.enter(letter, index, h_BMD)
    projected = _project(block, letter, block.ln_1(states if states.ndim == 3 else states[None]))
    return projected.expand(images, -1, -1, -1)


def _project(block: Any, letter: Letter, x_BTD: Tensor) -> Tensor:
    """Compute query, key or value, split into heads, [B, H, T, d]."""
    attn, width = block.attn, x_BTD.shape[2]
    rows = slice(_PLACE[letter] * width, (_PLACE[letter] + 1) * width)
    projected = F.linear(x_BTD, attn.in_proj_weight[rows], attn.in_proj_bias[rows])
    return projected.view(*x_BTD.shape[:2], attn.num_heads, -1).transpose(1, 2)


def _finish(block: Any, x_BTD: Tensor, mixed_BHTd: Tensor) -> Tensor:
    """Compute what follows attention in a pre-norm block."""
    x_BTD = x_BTD + block.ls_1(block.attn.out_proj(mixed_BHTd.transpose(1, 2).flatten(2)))
    out: Tensor = x_BTD + block.ls_2(block.mlp(block.ln_2(x_BTD)))
    return out


def image_obstacle(model: nn.Module) -> str | None:
    """Say what in a model's structure keeps prompts out of its image tower; None: prompts can enter.

    The model may be on the meta device.
    """
    if not isinstance(model, (open_clip.CLIP, open_clip.CustomTextCLIP)):
        return f"a model of class {type(model).__name__}"
    visual: Any = model.visual
    if type(visual) is not VisionTransformer:
        trunk = getattr(visual, "trunk", None)
        inner = "" if trunk is None else f" around timm's {type(trunk).__name__}"
        return f"a tower of class {type(visual).__name__}{inner}"
    if visual.attn_pool is not None:
        return "attentional pooling (attn_pool, as in CoCa)"
    if visual.pool_type not in ("tok", "avg"):
        return f"pooling of type '{visual.pool_type}'"
    for block in visual.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            return f"blocks of class {type(block).__name__}"
    for parameter in visual.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            return f"weights in {parameter.dtype}; load the model in float32 and use autocast"
    return None


def _unsupported(obstacle: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"this model's image tower cannot carry prompts: it has {obstacle}; {_SUPPORTED}",
        hint="train prompts of the text tower (tower = 'text'), or choose another student",
    )
