"""Run a CLIP's frozen vision transformer with prompt slots behind its patches.

This module trains nothing (`learner` says what is learned), reads no images and refuses towers of another make. What a
block is made of differs between libraries: `image_backbone` is what the tower asks of one, `image_open_clip` and
`image_timm` answer.

The tokens are [class] patches slots; slots have no position, neither at the input nor in rotary attention, and no
pooling reads them. Without a gate every token sees every other in one softmax
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
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from teachonce.errors import TeachOnceError, UnsupportedModelError
from teachonce.towers.image_backbone import Backbone, low_precision
from teachonce.towers.image_open_clip import OpenClipBackbone
from teachonce.towers.image_timm import timm_backbone
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Letter

_SUPPORTED = (
    "supported: open_clip's own VisionTransformer of plain blocks, pooled at its class token or over patches; timm's "
    "VisionTransformer (as in SigLIP) and Eva (as in EVA and PE-Core)"
)


@dataclass(frozen=True, eq=False)
class ImageTower:
    """The frozen image tower of an open_clip model, which refers to the model's own modules and copies no weights."""

    backbone: Backbone
    blocks: tuple[Any, ...]

    @classmethod
    def from_clip(cls, model: nn.Module) -> ImageTower:
        """Take the image tower out of a model and freeze it (`requires_grad_(False)`).

        Raises:
            UnsupportedModelError: prompts cannot enter the tower; the message names what keeps them out.
        """
        backbone = _backbone(model)
        if isinstance(backbone, str):
            raise UnsupportedModelError(
                f"this model's image tower cannot carry prompts: it has {backbone}; {_SUPPORTED}",
                hint="train prompts of the text tower (tower = 'text'), or choose another student",
            )
        visual: Any = model.visual
        visual.requires_grad_(False)
        return cls(backbone, backbone.blocks)

    @property
    def width(self) -> int:
        """D."""
        return self.backbone.width

    @property
    def layers(self) -> int:
        """L."""
        return len(self.blocks)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.backbone.image_size

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.backbone.weight.device

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
        pooled = self.backbone.pool(x_BRD)
        return F.normalize(pooled.to(torch.promote_types(pooled.dtype, torch.float32)), dim=-1)

    def patch_scales(self) -> Tensor:
        """Measure how large the states of the patches are at the input of every block, for one grey image, [L].

        sigma_l = sqrt(mean over patches n and units i of (x_lni - mean_i x_lni)^2), that is, centred over the width:
        the norm before attention drops each position's mean, so a shift does not count.
        """
        patches = torch.stack([x_1ND[0, self.backbone.prefix :] for x_1ND, _ in self._grey_states(None)])
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

        Preprocessing takes that colour to zero, but for releases that do not centre (MobileCLIP), where zero is black.
        """
        with torch.autocast(self.device.type, enabled=False):
            x_1ND = self._tokens(self.backbone.weight.new_zeros(1, 3, *self.image_size))
            states = [(x_1ND, _first_state(prompts))]
            for index in range(self.layers - 1):
                states.append(self._block(index, states[-1][0], prompts, states[-1][1]))
        return states

    def _block(
        self, index: int, x_BND: Tensor, prompts: SlotPrompts | None, h_BMD: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run one block; of the last block only the pooled tokens are computed, and no slots."""
        block, last = self.blocks[index], index == self.layers - 1
        rows = self.backbone.pooled if last else slice(None)
        if prompts is None:
            q_BHRd, k_BHNd, v_BHNd = self._letters(block, x_BND, rows)
            mixed_BHRd = F.scaled_dot_product_attention(q_BHRd, k_BHNd, v_BHNd)
            return self.backbone.finish(block, x_BND[:, rows], mixed_BHRd), None
        return self._prompted_block(index, x_BND, rows, prompts, h_BMD)

    def _prompted_block(
        self, index: int, x_BND: Tensor, rows: slice, prompts: SlotPrompts, h_BMD: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run one block: some tokens of the image, [B, R, D], and the slots, [B, M, D]; None if nothing reads these."""
        block, attend, finish = self.blocks[index], F.scaled_dot_product_attention, self.backbone.finish
        new = prompts.entering(index)
        if new is not None and h_BMD is not None:
            h_BMD = torch.cat([h_BMD, new.expand(len(h_BMD), -1, -1)], 1)
        q_BHRd, k_BHNd, v_BHNd = self._letters(block, x_BND, rows)
        k_BHMd, v_BHMd = (self._at_slots(x, index, prompts, h_BMD, len(x_BND)) for x in ("key", "value"))
        k_BHTd, v_BHTd = torch.cat([k_BHNd, k_BHMd], 2), torch.cat([v_BHNd, v_BHMd], 2)
        if prompts.gate is None:
            mixed_BHRd = attend(q_BHRd, k_BHTd, v_BHTd)
        else:
            from_slots = attend(q_BHRd, k_BHMd, v_BHMd)
            mixed_BHRd = attend(q_BHRd, k_BHNd, v_BHNd) + prompts.gate[index].tanh() * from_slots
        x_BRD = finish(block, x_BND[:, rows], mixed_BHRd)
        if index == self.layers - 1 or index < prompts.entry:
            return x_BRD, None
        q_BHMd = self._at_slots("query", index, prompts, h_BMD, len(x_BND))
        h_BMD = prompts.enter("residual", index, h_BMD)
        return x_BRD, finish(block, h_BMD, attend(q_BHMd, k_BHTd, v_BHTd))

    def _letters(self, block: Any, x_BND: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries of some of the image's tokens, and keys and values of all its tokens."""
        backbone = self.backbone
        normed = backbone.norm(block, x_BND)
        q_BHRd = backbone.place(backbone.project(block, "query", normed[:, rows]), rows)
        k_BHNd = backbone.place(backbone.project(block, "key", normed), slice(None))
        return q_BHRd, k_BHNd, backbone.project(block, "value", normed)

    def _at_slots(self, letter: Letter, index: int, prompts: SlotPrompts, h_BMD: Tensor | None, images: int) -> Tensor:
        """Compute query, key or value at the slots, [B, H, M, d]; once where all images have the same."""
        block, states = self.blocks[index], prompts.enter(letter, index, h_BMD)
        normed = self.backbone.norm(block, states if states.ndim == 3 else states[None])
        return self.backbone.project(block, letter, normed).expand(images, -1, -1, -1)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Return the image's tokens as they enter the first block, [B, N, D]."""
        size = (3, *self.image_size)
        if pixels.ndim != 4 or pixels.shape[1:] != size:
            raise TeachOnceError(f"images of shape {tuple(pixels.shape)} do not fit a tower for {('B', *size)}")
        return self.backbone.tokens(pixels)


def image_obstacle(model: nn.Module) -> str | None:
    """Say what in a model's structure keeps prompts out of its image tower; None where they can enter.

    It looks at classes and settings only and changes nothing, so it also answers for models on the meta device.
    """
    backbone = _backbone(model)
    return backbone if isinstance(backbone, str) else None


def _backbone(model: nn.Module) -> Backbone | str:
    """Return the parts of a model's image tower, or what keeps prompts out of it."""
    if not isinstance(model, (open_clip.CLIP, open_clip.CustomTextCLIP)):
        return f"a model of class {type(model).__name__}"
    visual: Any = model.visual
    if type(visual) is VisionTransformer:
        kind: Any = OpenClipBackbone.obstacle(visual) or OpenClipBackbone
    elif type(visual) is TimmModel:
        kind = timm_backbone(visual)
    elif type(visual) is ModifiedResNet:
        kind = "a tower of class ModifiedResNet, which is made of convolutions"
    else:
        kind = f"a tower of class {type(visual).__name__}"
    if isinstance(kind, str):
        return kind
    backbone: Backbone = kind(visual)
    return low_precision(visual) or backbone


def _first_state(prompts: SlotPrompts | None) -> Tensor | None:
    return None if prompts is None or prompts.context is None else prompts.context[None]
