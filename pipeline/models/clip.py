"""Load CLIP models through open_clip's own loaders and say exactly what was loaded.

This module changes no weights and no preprocessing: a model's own evaluation transform is used verbatim.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import open_clip
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from teachonce.data.views import View
from teachonce.errors import EnvironmentFault
from teachonce.models.spec import Precision, parse_spec
from teachonce.models.view_transform import ViewTransform

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_gpu_in_use = [0]  # the number of the GPU that this process uses, among those that the process sees


@dataclass(frozen=True)
class LoadedClip:
    """A frozen CLIP in evaluation mode."""

    spec: str
    model: nn.Module
    tokenizer: Any
    preprocess: Any
    """open_clip's evaluation transform, which takes a PIL image to a tensor [3, H, W]."""
    digest: str
    """SHA-256 (hex) over the modules and over names, types, shapes and bytes of all weights."""
    device: torch.device
    image_tower: Callable[[Tensor], Tensor] | None = None
    """A compiled function that replaces the model's own `encode_image`."""

    @property
    def logit_scale(self) -> float:
        """The factor on the cosine similarity, as trained."""
        scale = self.model.logit_scale
        assert isinstance(scale, Tensor)
        return float(scale.detach().exp())

    @property
    def preprocess_text(self) -> str:
        """The transform in words, which are the same in every process."""
        return re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(self.preprocess).split()))

    def prepare(self, image: Image.Image) -> Tensor:
        """Turn one decoded image into the model's input, [3, H, W] float32."""
        pixels: Tensor = self.preprocess(image)
        return pixels

    @cached_property
    def _view_transform(self) -> ViewTransform:
        visual: Any = self.model.visual
        return ViewTransform(self.preprocess, visual.preprocess_cfg)

    def prepare_view(self, image: Image.Image, view: View) -> Tensor:
        """Turn one view of a decoded image into the model's input, [3, H, W] float32."""
        return self._view_transform(image, view)

    def compiled(self) -> LoadedClip:
        """Return the same model with its image tower under `torch.compile`.

        The first batch takes a minute, later ones less. Features differ from the plain ones by rounding.

        """
        tower = torch.compile(cast(Callable[..., Tensor], self.model.encode_image), dynamic=False)
        return replace(self, image_tower=tower)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor, precision: Precision = "fp32") -> Tensor:
        """Compute unit image features.

        Args:
            pixels: [B, 3, H, W] from `prepare`.
            precision: the precision of the tower; the features are normalised in float32 in any case.

        Returns:
            [B, E] float32 on the model's device.
        """
        pixels = pixels.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        with autocast(self.device, precision):
            features = (self.image_tower or self.model.encode_image)(pixels)  # type: ignore[operator]
        return nn.functional.normalize(features.float(), dim=-1)


def load_clip(spec: str, device: str = "cpu") -> LoadedClip:
    """Load a CLIP model.

    Args:
        spec: a name that open_clip takes: `ViT-L-14/openai` (architecture/weights), `hf-hub:ORG/NAME`,
            `local-dir:PATH`.
        device: the device that the model runs on.

    Raises:
        UsageError: the spec names no model.
        EnvironmentFault: the weights could not be fetched or do not fit the architecture.
    """
    name, tag = parse_spec(spec)
    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            name, pretrained=tag, device=device, force_quick_gelu=_needs_quick_gelu(name, tag)
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as problem:
        raise EnvironmentFault(
            f"open_clip could not load '{spec}': {problem}",
            hint="check the name and the network, or give a folder: local-dir:PATH",
        ) from problem
    model.eval().requires_grad_(False)
    visual = model.visual
    visual.to(memory_format=torch.channels_last)
    return LoadedClip(spec, model, tokenizer, preprocess, weights_digest(model), torch.device(device))


def _needs_quick_gelu(name: str, tag: str | None) -> bool:
    """Whether these weights were trained with quick-GELU, which open_clip's plain architecture names do not say."""
    if tag is None:
        return False
    weights_config = open_clip.get_pretrained_cfg(name, tag) or {}
    return bool(weights_config.get("quick_gelu", False))


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 (hex) over the modules and the state dict: a model's identity, whatever its source.

    The modules count because the same weights with another activation are another model.
    """
    sha = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(model)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().to("cpu").contiguous()
        sha.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        sha.update(data.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Run matrix products in half precision, or leave everything in float32."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=_HALF[precision]):
        yield


def allow_tf32(allowed: bool) -> None:
    """Choose whether CUDA may compute float32 products and convolutions of this process in TF32."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Keep products of float32, such as logits and losses, in float32 inside the block, even if TF32 is allowed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def pick_device(index: int | None = None) -> str:
    """Return `cuda:i` for the i-th worker of a machine with a GPU, else `cpu`; None: as `take_device` set it."""
    if torch.cuda.is_available():
        return f"cuda:{(_gpu_in_use[-1] if index is None else index) % torch.cuda.device_count()}"
    return "cpu"


def take_device(index: int) -> None:
    """Make the GPU of the i-th worker of this machine the one that this process uses from now on."""
    _gpu_in_use[:] = [index]
    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())


def tune_process(threads: int) -> None:
    """Set the number of CPU threads and keep glibc from returning large buffers to the kernel after each batch.

    Measured on an EfficientNet-Lite1: 65 images/s with glibc's defaults, 140 with its mmap and trim switched off,
    because every buffer is otherwise page-faulted in again. Without glibc only the threads are set.
    """
    torch.set_num_threads(max(1, threads))
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4  # these numbers are from glibc's malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def embedding_width(clip: LoadedClip) -> int:
    """Return the width of the joint embedding: the length of an image feature, found by encoding one grey image."""
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    return int(clip.encode_images(clip.prepare(grey)[None]).shape[1])
