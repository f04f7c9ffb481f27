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
from torch import Tensor, nn

from teachonce.core.devices import device_fault, has_bf16
from teachonce.core.digests import MIDDLE, canonical_digest
from teachonce.core.hub import offline_where_unreachable
from teachonce.data.views import EVALUATION, View
from teachonce.errors import EnvironmentFault, TeachOnceError
from teachonce.models.hf import deciding, mismatch, missing_line, offline_hint, tower_options
from teachonce.models.spec import (
    CONFIG,
    IMAGE_PARTS,
    LOCAL_DIR,
    AskedPrecision,
    Behaviour,
    Precision,
    Resize,
    parse_spec,
    require_model,
)
from teachonce.models.view_transform import ViewTransform

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
MOST_SAID = 600  # letters of a library's message
# Texts on which tokenizers differ: case, accents, widths, punctuation, white space, scripts, and their own words.
_TEXTS = (
    "a photo of a Red Fox.",
    "na\u00efve CAF\u00c9, fa\u00e7ade; e\u0301 \u0130 \u00df \ufb01",
    "\uff46\uff55\uff4c\uff4c width",
    "don't & can't &amp; &#39;",
    "3.14 m\u00b2 x-ray_1 (ice)!?",
    "  two  spaces\tand\nlines ",
    "\u6771\u4eac \u092e\u0941\u0902\u092c\u0908 \u041c\u043e\u0441\u043a\u0432\u0430",
    "<start_of_text> </w> [CLS] <s>",
)
_WORDS = ("red fox", "blue jay", "yellow bus", "cup of tea")
_PREPARING = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
# Attributes of modules that decide features and show neither in the modules' text nor in a tensor's shape.
_DECIDING = (
    "num_heads",
    "heads",
    "pool_type",
    "text_pool_type",
    "attn_pool_type",
    "global_pool",
    "final_ln_after_pool",
    "pad_id",
    "eos_id",
    "text_eos_id",
    "use_pad_mask",
    "correct_cls_mask",
    "scaled_cosine",
    "scale_heads",
    "logit_scale_max",
    "cls_token_position",
    "use_pooler_output",
)


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
    resize: Resize = "pillow"
    """Who resizes its images."""

    @property
    def logit_scale(self) -> float:
        """The factor on the cosine similarity, as trained."""
        scale = self.model.logit_scale
        assert isinstance(scale, Tensor)
        return float(scale.detach().exp())

    @property
    def logit_bias(self) -> float | None:
        """What the sigmoid of a SigLIP adds to every logit, as trained; None for models of a softmax."""
        bias = getattr(self.model, "logit_bias", None)
        return float(bias.detach()) if isinstance(bias, Tensor) else None

    @cached_property
    def behaviour(self) -> Behaviour:
        """What decides its features besides modules and weights: a digest for each of `spec.PARTS`."""
        preparing = getattr(self.model.visual, "preprocess_cfg", {})
        return {
            "tokenizer": _tokenizer_digest(self.tokenizer),
            "preprocess": canonical_digest([preparing.get(key) for key in _PREPARING], MIDDLE),
            "structure": _structure_digest(self.model),
        }

    @property
    def image_behaviour(self) -> Behaviour:
        """The parts of `behaviour` that image features depend on."""
        return {part: self.behaviour[part] for part in IMAGE_PARTS}

    @property
    def preprocess_text(self) -> str:
        """The transform in words, which are the same in every process."""
        return re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(self.preprocess).split()))

    def prepare(self, image: Image.Image) -> Tensor:
        """Turn one decoded image into the model's input, [3, H, W] float32."""
        if self.resize != "pillow":
            return self._view_transform(image, EVALUATION)
        pixels: Tensor = self.preprocess(image)
        return pixels

    def resized_by(self, resize: Resize) -> LoadedClip:
        """Return the same model with its images resized by another.

        Raises:
            UsageError: this model's transform is known for images only, and not for tensors.
        """
        if resize == self.resize:
            return self
        other = replace(self, resize=resize)
        other.__dict__.update(behaviour=self.behaviour)  # it is the same, and takes a while to find out
        _ = other._view_transform  # what cannot be done should fail here
        return other

    @cached_property
    def _view_transform(self) -> ViewTransform:
        visual: Any = self.model.visual
        return ViewTransform(self.preprocess, visual.preprocess_cfg, self.resize, self.spec)

    def prepare_view(self, image: Image.Image, view: View) -> Tensor:
        """Turn one view of a decoded image into the model's input, [3, H, W] float32."""
        return self._view_transform(image, view)

    @cached_property
    def preparation(self) -> str:
        """Words that are equal for models that make equal pixels of every view."""
        known = "" if self._view_transform.scaling else f" {id(self.preprocess)}"
        return f"{self.preprocess_text} {self.behaviour['preprocess']} {self.resize}{known}"

    def view_pixels(self, image: Image.Image, view: View) -> Tensor:
        """Turn one view of a decoded image into what `placed` takes, [3, H, W]: uint8 where it can be, else float32."""
        return self._view_transform.pixels(image, view)

    def placed(self, pixels: Tensor) -> Tensor:
        """Turn [B, 3, H, W] of `view_pixels` into the model's input, float32, channels last, on the model's device."""
        pixels = pixels.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        scaling = self._view_transform.scaling if pixels.dtype == torch.uint8 else None
        return pixels if scaling is None else scaling(pixels)

    def compiled(self) -> LoadedClip:
        """Return the same model with its image tower under `torch.compile`.

        The first batch takes a minute, later ones less. Features differ from the plain ones by rounding.

        """
        tower = torch.compile(cast(Callable[..., Tensor], self.model.encode_image), dynamic=False)
        return replace(self, image_tower=tower)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor, precision: AskedPrecision = "fp32") -> Tensor:
        """Compute unit image features.

        Args:
            pixels: [B, 3, H, W] from `prepare`, `view_pixels` or `placed`.
            precision: the precision of the tower; the features are normalised in float32 in any case.

        Returns:
            [B, E] float32 on the model's device.
        """
        pixels = self.placed(pixels)
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
        UsageError: the spec names no model, or a file of weights.
        EnvironmentFault: the model could not be fetched, does not fit the installed open_clip, or fails on a grey image
            or a short text.
    """
    name, tag = parse_spec(spec)
    require_model(spec)
    hub = contextlib.nullcontext() if spec.startswith(LOCAL_DIR) else offline_where_unreachable()
    with libraries_explained(spec, "load"), hub:
        towers, tokenizers = tower_options(name, open_clip.get_model_config(name))
        model, preprocess = open_clip.create_model_from_pretrained(
            name, pretrained=tag, device=device, force_quick_gelu=_needs_quick_gelu(name, tag), **towers
        )
        tokenizer = open_clip.get_tokenizer(name, **tokenizers)
        model.eval().requires_grad_(False)
        visual = model.visual
        visual.to(memory_format=torch.channels_last)
        loaded = LoadedClip(spec, model, tokenizer, preprocess, weights_digest(model), torch.device(device))
        _ = loaded.behaviour  # a tokenizer that fails should fail here
    with libraries_explained(spec, "run"):
        _try_out(loaded)
    return loaded


@torch.inference_mode()
def _try_out(clip: LoadedClip) -> None:
    """Run a grey image and a short text through a model: one that was loaded may still fail on every input."""
    tokens = clip.tokenizer(list(_TEXTS[:1]))
    rows = getattr(clip.model, "vocab_size", None)
    if isinstance(rows, int) and 0 < rows <= int(tokens.max()):
        raise EnvironmentFault(
            f"'{clip.spec}' does not fit its tokenizer: the token table has {rows} rows, and the tokenizer gives ids "
            f"up to {int(tokens.max())}",
            hint=f"mend vocab_size, or hf_tokenizer_name, in its {CONFIG}, or take the weights that belong to it",
        )
    words = clip.tokenizer(list(_WORDS)).tolist()
    if len({tuple(ids) for ids in words}) < len(words):  # transformers makes one without a vocabulary, and says nothing
        raise EnvironmentFault(
            f"'{clip.spec}' has a tokenizer that cannot tell words apart: the files of its vocabulary are missing",
            hint="put them beside its tokenizer_config.json: tokenizer.json, or those that its release has",
        )
    clip.encode_images(clip.prepare(Image.new("RGB", (64, 48), (128, 128, 128)))[None])
    clip.model.encode_text(tokens.to(clip.device))  # type: ignore[operator]


@contextlib.contextmanager
def libraries_explained(spec: str, step: str) -> Iterator[None]:
    """Say of whatever open_clip and the libraries below it raise inside what it means for this model.

    Args:
        spec: the model.
        step: what was tried: load or run.

    Raises:
        EnvironmentFault: in place of it; a DeviceFault where the device is at fault.
    """
    try:
        yield
    except TeachOnceError:
        raise
    except MemoryError as problem:
        raise EnvironmentFault(
            f"there is not enough memory to {step} '{spec}': {_short(problem)}",
            hint="end what else uses the memory, or take a smaller model",
        ) from problem
    except Exception as problem:  # noqa: BLE001 - a model that does not fit makes its libraries raise anything
        fault = device_fault(problem)
        if fault is not None:
            raise fault.reworded(f"'{spec}' could not {step} on its device: " + fault.message) from problem
        missing = missing_line(problem)
        if missing:
            package, line = missing
            raise EnvironmentFault(
                f"'{spec}' needs the package '{package}', which is not installed here: {_short(problem)}", hint=line
            ) from problem
        said, hint = mismatch(problem) or (f"{type(problem).__name__}: {_short(problem)}", "")
        local = spec.startswith(LOCAL_DIR)
        where = f"the files in {spec.removeprefix(LOCAL_DIR)}" if local else "the name and the network"
        raise EnvironmentFault(
            f"open_clip {open_clip.__version__} could not {step} '{spec}': {said}",
            hint=hint
            or offline_hint(spec, problem)
            or f"check {where}, and the version of open_clip_torch; or give a folder: local-dir:PATH",
        ) from problem


def _short(problem: BaseException) -> str:
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= MOST_SAID else text[:MOST_SAID] + " ..."


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


def _tokenizer_digest(tokenizer: Any) -> str:
    """The digest of all tokens with their ids, and of what becomes of texts on which tokenizers differ."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # the one of transformers that open_clip wraps
    table = inner.get_vocab() if hasattr(inner, "get_vocab") else getattr(inner, "encoder", {})
    ids = [tokenizer([text]).tolist() for text in _TEXTS]
    return canonical_digest([dict(table), ids], MIDDLE)


def _structure_digest(model: nn.Module) -> str:
    """The digest of what neither the modules' text nor the weights show: heads, pooling, masks."""
    said: dict[str, Any] = {
        f"{name}.{key}": vars(module)[key]
        for name, module in model.named_modules()
        for key in _DECIDING
        if isinstance(vars(module).get(key), (bool, int, float, str))
    }
    said |= deciding(model)
    weights = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name.endswith("mask") and name not in weights:
            said[name] = hashlib.sha256(buffer.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
    return canonical_digest(said, MIDDLE)


def resolved_precision(asked: AskedPrecision, device: torch.device | str) -> Precision:
    """The number format that `auto` becomes on a device: bf16 where it multiplies bfloat16 in hardware, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if has_bf16(str(device)) else "fp32"


@contextlib.contextmanager
def autocast(device: torch.device, precision: AskedPrecision) -> Iterator[None]:
    """Run matrix products in half precision, or leave everything in float32."""
    became = resolved_precision(precision, device)
    if became == "fp32":
        yield
        return
    with torch.autocast(device.type, dtype=_HALF[became]):
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
