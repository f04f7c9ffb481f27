"""Learn image prompts that are linear maps of the text prompts, block by block: the coupling of MaPLe.

It runs no tower. MaPLe: arXiv 2210.03117, section 3.3, P~_l = F_l(P_l), one affine map a block.

Shapes: M slots, J image blocks with prompts, L blocks, D width of the text tower, W width of the image tower.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from teachonce.errors import UsageError
from teachonce.models.learner import Learner, SlotLearner
from teachonce.models.prompts import Prompts, coupled_depth
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Allocation, allocate
from teachonce.towers.text_tower import TextTower

_CLOSE = 1e-3  # of the largest number: how far maps may miss prompts that a run starts from


class CoupledLearner(Learner):
    """Trainable maps from the text slots' prompts to the image slots'. Every parameter starts at zero.

    With s_l and t_l the sizes of slot states in image and text block l, a prompt P of block l becomes
        s_l ((F_l + map_l / D) P / t_l + bias_l),
    where F_l is drawn as a layer of PyTorch begins, U(-1/sqrt(D), 1/sqrt(D)), and the unit 1/D makes one learning rate
    suit maps and prompts. Without `layer_scale` s_l, t_l and the unit are 1: MaPLe's own parameters. Its biases begin
    at random and ours at zero, so that carried prompts begin as no more than the mapped context.

    A block has one map, through which all its letters, or the slots that it adds, go; the context of carried prompts
    has one of its own. A letter
    that replaces states and that the text tower does not have in a block is mapped from the block's key; an added one
    is the bias alone.

    Args:
        allocation: which image prompts there are.
        text: the learner of the text prompts, whose parameters get gradients too and are not parameters of this module.
        text_scales: [L of the text tower] t_l.
        image_scales: [L of the image tower] s_l.
        unit: of the maps' parameters.
        gated: whether slots stand behind a gate in every block, which is trained and begins closed.
        seed: of the maps.
    """

    def __init__(
        self,
        allocation: Allocation,
        text: SlotLearner,
        text_scales: Tensor,
        image_scales: Tensor,
        unit: float,
        *,
        width: int,
        gated: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.allocation, self.slots, self._text, self._unit = allocation, text.slots, text.forward, unit
        narrow = _width(text())
        self._ranges: dict[str, range] = {str(letter): blocks for letter, blocks in allocation.blocks.items()}
        if allocation.added:
            self._ranges["added"] = allocation.added
        self._first = min((blocks.start for blocks in self._ranges.values()), default=0)
        mapped = max((blocks.stop for blocks in self._ranges.values()), default=0) - self._first
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
        self.register_buffer("text_scales", text_scales.detach().clone(), persistent=False)
        self.register_buffer("image_scales", image_scales.detach().clone(), persistent=False)
        for name, count in (("context", int(allocation.context)), ("blocks", mapped)):
            if count:
                drawn = torch.rand(count, width, narrow, generator=generator) * 2 - 1
                self.register_buffer(f"start_{name}", drawn.to(image_scales) * narrow**-0.5, persistent=False)
                self.register_parameter(f"map_{name}", nn.Parameter(image_scales.new_zeros(count, width, narrow)))
                self.register_parameter(f"bias_{name}", nn.Parameter(image_scales.new_zeros(count, width)))
        if gated:
            self.register_parameter("gate", nn.Parameter(torch.zeros_like(image_scales)))

    def forward(self) -> SlotPrompts:
        """The image prompts in the tower's own units, in the graph of the maps and of the text prompts."""
        text = self._text()
        values: dict[str, Tensor | None] = {"context": None}
        for name, place, blocks, prompts in self._sources(text):
            start, change, bias = (self._part(part, place, blocks) for part in ("start", "map", "bias"))
            mapped_nMW = prompts @ (start + self._unit * change).transpose(1, 2) + bias[:, None]
            stack = self._scale("image", blocks) * mapped_nMW
            values[name] = stack[0] if name == "context" else stack
        if "gate" in self._parameters:
            values["gate"] = self.get_parameter("gate")
        return SlotPrompts(**values, replace=self.allocation.replace)

    @torch.no_grad()
    def load_start(self, prompts: SlotPrompts) -> None:
        """Set maps and gate so that the text prompts as they are lead to these image prompts.

        Of all maps that do, the ones nearest to those drawn are taken. Load the text prompts first.

        Raises:
            UsageError: the prompts have another size, or are no affine maps of the text prompts.
        """
        given, here = prompts.tensors(), self().tensors()
        if {n: x.shape for n, x in given.items()} != {n: x.shape for n, x in here.items()}:
            sizes = [{n: tuple(x.shape) for n, x in tensors.items()} for tensors in (given, here)]
            raise UsageError(
                f"the given prompts hold {sizes[0]}, which cannot start coupled prompts of {sizes[1]}",
                hint="train the same structure with the same length and depth, and coupled as there",
            )
        for parameter in self.parameters():
            parameter.zero_()
        equations: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
        for name, place, blocks, source in self._sources(self._text()):
            wanted = given[name][None] if name == "context" else given[name]
            wanted = wanted.to(source) / self._scale("image", blocks)
            for block, inputs, outputs in zip(blocks, source, wanted, strict=True):
                equations.setdefault((place, block), []).append((inputs, outputs))
        for (place, block), pairs in equations.items():
            index = block - (self._first if place == "blocks" else 0)
            self._solve(place, index, torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))
        if "gate" in given:
            self.get_parameter("gate").copy_(given["gate"])
        reached = self().tensors()
        for name, x in given.items():
            off = float((reached[name] - x.to(reached[name])).abs().max())
            if not off <= _CLOSE * max(1e-9, float(x.abs().max())):
                raise UsageError(
                    f"the given image prompts are no maps of the text prompts: {name} would be {off:.2g} off",
                    hint="start from a run with coupled prompts, or set coupled = false",
                )

    def _solve(self, place: str, index: int, inputs_ND: Tensor, outputs_NW: Tensor) -> None:
        """The smallest change of one map with which it leads from inputs to outputs."""
        start = self.get_buffer(f"start_{place}")[index].double()
        missing = (outputs_NW.double() - inputs_ND.double() @ start.T).cpu()
        known = torch.cat([inputs_ND.double() * self._unit, inputs_ND.new_ones(len(inputs_ND), 1).double()], 1).cpu()
        change = torch.linalg.lstsq(known, missing, driver="gelsd").solution
        parameter, bias = self.get_parameter(f"map_{place}"), self.get_parameter(f"bias_{place}")
        parameter[index].copy_(change[:-1].T)
        bias[index].copy_(change[-1])

    def _sources(self, text: SlotPrompts) -> Iterator[tuple[str, str, range, Tensor]]:
        """Each image prompt: its name, whose maps it takes, its blocks, and the text prompts [n, M, D], scaled."""
        if text.context is not None:
            yield "context", "context", range(1), text.context[None] / self._scale("text", range(1))
        for name, blocks in self._ranges.items():
            scale = self._scale("text", blocks)
            yield name, "blocks", blocks, torch.stack([_prompt(text, name, block) for block in blocks]) / scale

    def _part(self, part: str, place: str, blocks: range) -> Tensor:
        whole = self.get_buffer(f"start_{place}") if part == "start" else self.get_parameter(f"{part}_{place}")
        first = self._first if place == "blocks" else 0
        return whole[blocks.start - first : blocks.stop - first]

    def _scale(self, tower: str, blocks: range) -> Tensor:
        """[n, 1, 1] of the blocks; the context has the first block's."""
        return self.get_buffer(f"{tower}_scales")[blocks.start : blocks.stop, None, None]


def _width(prompts: SlotPrompts) -> int:
    tensor = prompts.key if prompts.context is None else prompts.context
    return 0 if tensor is None else int(tensor.shape[-1])


def _prompt(text: SlotPrompts, name: str, block: int) -> Tensor:
    """What the text tower has of a letter in a block, [M, D]; see `CoupledLearner` for what it does not have."""
    stack: Tensor | None = getattr(text, name)
    if name == "added":
        assert stack is not None
        return stack[block - 1]
    if text.replace:
        assert text.key is not None
        first = text.entry if name in ("query", "residual") else 0
        there = stack is not None and 0 <= block - first < len(stack)
        return stack[block - first] if there and stack is not None else text.key[block]
    assert text.context is not None
    return stack[block] if stack is not None and block < len(stack) else torch.zeros_like(text.context)


def coupled_learner(
    image: ImageTower, tower: TextTower, prompts: Prompts, text: SlotLearner, seed: int = 0
) -> CoupledLearner:
    """The trainable maps from a text tower's prompts to an image tower's.

    `init` = template: image slots are behind a gate in every block, which begins closed and is trained, as they are
    where nothing is coupled: step 0 is the frozen student exactly.

    Args:
        image: the student's image tower.
        tower: its text tower.
        prompts: what they are and how they begin; `image_length` and `image_depth` are not read.
        text: the learner of the text prompts.
        seed: of the maps.
    """
    depth = coupled_depth(prompts, tower.layers, image.layers)
    text_scales, image_scales = tower.slot_scales(prompts.context), image.patch_scales()
    unit = 1 / tower.width
    if not prompts.layer_scale:
        text_scales, image_scales, unit = torch.ones_like(text_scales), torch.ones_like(image_scales), 1.0
    return CoupledLearner(
        allocate(prompts.structure, image.layers, depth),
        text,
        text_scales,
        image_scales,
        unit,
        width=image.width,
        gated=prompts.init == "template",
        seed=seed,
    )
