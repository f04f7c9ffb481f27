"""Learn prompts: what a run trains, where it starts, and in which units.

It does not run a tower (`text_tower`, `image_tower`) and keeps nothing on disk (`prompt_files`).

Shapes: M slots, L blocks, D width, n blocks that have a letter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from teachonce.errors import TeachOnceError, UsageError
from teachonce.models.prompts import Prompts
from teachonce.towers.image_tower import ImageTower
from teachonce.towers.slots import SlotPrompts
from teachonce.towers.structures import Allocation, Init, Letter, allocate
from teachonce.towers.text_tower import TextTower

NOISE = 0.02
"""Standard deviation of context vectors that start at random (CoOp, arXiv 2109.01134)."""
STATE = "state"
"""The parameter of `shared-replace`: the slot states of its blocks, of which all letters are made."""
_LETTERS: tuple[Letter, ...] = get_args(Letter)


class Learner(nn.Module):
    """The trainable prompts of one tower, whatever they are made of."""

    slots: int
    """M."""

    def forward(self) -> SlotPrompts:
        """The prompts in the tower's own units, in the autograd graph of the parameters."""
        raise NotImplementedError

    def load_start(self, prompts: SlotPrompts) -> None:
        """Set the parameters so that `forward` gives these prompts, up to rounding.

        Raises:
            UsageError: no parameters give them.
        """
        raise NotImplementedError

    def trainable_parameters(self) -> int:
        """The exact number of numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


class SlotLearner(Learner):
    """Trainable prompts of one tower. Every parameter starts at zero: forward() = start + scale * parameter.

    With scales sigma_l, the sizes of hand-written slot states, which differ a hundredfold between blocks, one step
    size suits all blocks. Start and scales follow from the student and `Prompts`, so a checkpoint need not hold them.

    Args:
        allocation: which tensors are trained.
        start: what `forward` gives before the first step; a letter that it lacks starts at zero. With a gate, the gate
            is trained too.
        scales: [L], the unit of each block's parameters; the context has the first block's, a gate has 1.
        block_inputs: carried prompts to the tower's states at the slots [L, M, D]; with it, `load_start` can turn
            carried prompts into replacing ones. Where the states differ with the input, it gives those of one.

    Attributes:
        kept: of some parameters, a factor that is multiplied with what has been learned, while a step masks dimensions.

    Raises:
        TeachOnceError: the start does not fit the allocation.
    """

    def __init__(
        self,
        allocation: Allocation,
        start: SlotPrompts,
        scales: Tensor,
        block_inputs: Callable[[SlotPrompts], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.allocation = allocation
        self.slots = start.slots
        self._block_inputs = block_inputs
        self._names: list[str] = []
        self.kept: Mapping[str, Tensor] = {}
        width = (start.key if start.context is None else start.context).shape[-1]  # type: ignore[union-attr]
        zeros = scales.new_zeros(self.slots, width)
        if allocation.tied:
            every = allocation.blocks["key"]
            self._add(STATE, start.key, zeros.expand(len(every), -1, -1), scales[: len(every), None, None])
        if allocation.context:
            self._add("context", start.context, zeros, scales[0])
        for letter in _LETTERS:
            blocks = allocation.blocks.get(letter)
            if blocks is not None and not allocation.tied:
                empty = zeros.expand(len(blocks), -1, -1)
                self._add(letter, getattr(start, letter), empty, scales[blocks.start : blocks.stop, None, None])
        if allocation.added:
            of_blocks = slice(allocation.added.start, allocation.added.stop)
            empty = zeros.expand(len(allocation.added), -1, -1)
            self._add("added", start.added, empty, scales[of_blocks, None, None])
        if start.gate is not None:
            self._add("gate", start.gate, torch.zeros_like(start.gate), scales.new_ones(()))
        gates = 0 if start.gate is None else start.gate.numel()
        expected = allocation.parameters(self.slots, width) + gates
        unknown = set(start.tensors()) - set(self.forward().tensors())
        if self.trainable_parameters() != expected or unknown:
            raise TeachOnceError(
                f"{self._names} with {self.trainable_parameters()} parameters were made where {expected} were expected "
                f"for {allocation} from {sorted(start.tensors())}"
            )

    def _add(self, name: str, start: Tensor | None, zeros: Tensor, scale: Tensor) -> None:
        base = (zeros if start is None else start).detach().clone()
        if base.shape != zeros.shape:
            raise TeachOnceError(f"a start of shape {tuple(base.shape)} was given for {name} of {tuple(zeros.shape)}")
        self._names.append(name)
        self.register_buffer(f"start_{name}", base, persistent=False)
        self.register_buffer(f"scale_{name}", scale.detach().clone(), persistent=False)
        self.register_parameter(name, nn.Parameter(torch.zeros_like(base)))

    def forward(self) -> SlotPrompts:
        """The prompts in the tower's own units, in the autograd graph of the parameters."""
        values = {name: self.get_buffer(f"start_{name}") + self._learned(name) for name in self._names}
        state = values.pop(STATE, None)
        if state is not None:
            letters = self.allocation.blocks.items()
            values |= {letter: state[blocks.start : blocks.stop] for letter, blocks in letters}
        return SlotPrompts(**{"context": None, **values}, replace=self.allocation.replace)

    def _learned(self, name: str) -> Tensor:
        learned = self.get_buffer(f"scale_{name}") * self.get_parameter(name)
        return learned * self.kept[name] if name in self.kept else learned

    @torch.no_grad()
    def load_start(self, prompts: SlotPrompts) -> None:
        """Set the parameters so that `forward` gives these prompts, up to rounding.

        Prompts of the same structure and size are taken as they are. Carried ones may have fewer letters or blocks
        than there are here: the rest is zero, and added slots are as they start. So a `shared` context starts every
        structure; a replacing one takes over the block inputs that carried prompts lead to (`replacing`).

        Raises:
            UsageError: prompts of another size, with something that this structure does not train, or with letters
                that differ where this structure has one state.
        """
        start = self._replacing(prompts) if self.allocation.replace and not prompts.replace else prompts
        given = start.tensors()
        if start.replace != self.allocation.replace or not self._has_room(given):
            given_sizes, own_sizes = _sizes(prompts.tensors()), _sizes(self().tensors())
            raise UsageError(
                f"the given prompts hold {given_sizes}, which cannot start prompts of {own_sizes}",
                hint="train the same structure with the same length and depth, or start from `shared` prompts",
            )
        if self.allocation.tied:
            given = self._as_states(given)
        for name in self._names:
            base = self.get_buffer(f"start_{name}")
            value = base.clone() if name == "added" else torch.zeros_like(base)
            if name in given:
                value[: len(given[name])] = given[name].to(base)
            self.get_parameter(name).copy_((value - base) / self.get_buffer(f"scale_{name}"))

    def _as_states(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """The one state of each block, given the letters that are made of it, and what else is there."""
        key = given["key"]
        for letter, blocks in self.allocation.blocks.items():
            if not torch.equal(given[letter], key[blocks.start : blocks.stop]):
                raise UsageError(
                    f"the given prompts have a {letter} that is not their key, and this structure makes both of one",
                    hint="train structure = 'unshared-replace', or start from prompts of one state a slot",
                )
        return {STATE: key, **{name: x for name, x in given.items() if name not in _LETTERS}}

    def _has_room(self, given: dict[str, Tensor]) -> bool:
        """Whether the tensors fit. All must be there in full, but carried letters may lack blocks or be absent."""
        here = self().tensors()
        partial: set[str] = set() if self.allocation.replace else {*_LETTERS, "added"}
        if not set(here) - partial <= set(given) <= set(here):
            return False
        sizes = [(x.shape, here[name].shape, name in partial) for name, x in given.items()]
        return all(
            x == size or (some and x[1:] == size[1:] and len(x) == len(size) and x[0] <= size[0])
            for x, size, some in sizes
        )

    def _replacing(self, prompts: SlotPrompts) -> SlotPrompts:
        """Carried prompts as replacing ones with the same features; themselves where there are none."""
        key = self.get_buffer(f"start_{STATE if self.allocation.tied else 'key'}")
        letters = (prompts.query, prompts.key, prompts.value, prompts.residual)
        beyond = any(x is not None and len(x) > len(key) for x in letters)
        fits = prompts.context is not None and prompts.context.shape == key.shape[1:] and prompts.added is None
        if self._block_inputs is None or beyond or not fits:
            return prompts
        moved = prompts.apply(lambda x: x.to(key))
        return replacing(self.allocation, moved, self._block_inputs(moved))


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in tensors.items()}


def replacing(allocation: Allocation, carried: SlotPrompts, states_LMD: Tensor) -> SlotPrompts:
    """The replacing prompts that stand for carried ones: P'[l] = h[l] + P[l].

    A text tower gives both the same features if the slots stand before the name and no carried letter lies beyond the
    replaced blocks. So at depth = L all carried structures with both keys and values, and replace, are one class of
    functions there. Where slot states depend on the name or on the image, no constant stands for them.

    Args:
        states_LMD: the carried states h, `block_inputs` of the carried prompts.
    """
    letters = {
        letter: torch.stack([carried.enter(letter, block, states_LMD[block]) for block in blocks])
        for letter, blocks in allocation.blocks.items()
    }
    return SlotPrompts(context=None, replace=True, gate=carried.gate, **letters)


def text_learner(tower: TextTower, prompts: Prompts, seed: int = 0) -> SlotLearner:
    """The trainable prompts of a text tower at their start.

    `init`:
    template: step 0 is the hand-written context exactly. Carried: its words, and zero deltas. Replace: the block
        inputs at its slots.
    words: the context's words in the first slots, noise in further ones. Replace: the block inputs of these.
    normal: N(0, 0.02) in every slot (CoOp), zero deltas. Replace: N(0, 1) times the size of the hand-written states.
    Of `accumulate` see `_added`; it has no start that is the template.

    Args:
        tower: the student's.
        prompts: what they are and how they begin; the keys of the image tower are not read.
        seed: of random starts.

    Raises:
        UsageError: an empty or too long context, a depth beyond the tower, a length that does not go with the start.
    """
    allocation = allocate(prompts.structure, tower.layers, prompts.depth)
    words = _words(tower, prompts)
    slots = prompts.length or len(words)
    _check_length(prompts, len(words), tower)
    sigma_L = tower.slot_scales(prompts.context)
    scales_L = sigma_L if prompts.layer_scale else torch.ones_like(sigma_L)
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(words)

    if prompts.init == "normal" and allocation.replace:
        start = _replacing_noise(allocation, sigma_L, slots, tower.width, noise)
    else:
        kept = 0 if prompts.init == "normal" else len(words)
        context = torch.cat([words[:kept], NOISE * noise(slots - kept, tower.width)])
        start = SlotPrompts(context)
        if allocation.replace:
            start = replacing(allocation, start, tower.block_inputs(start))
        if allocation.added:
            start = replace(start, added=_added(allocation, start, prompts.init, tower.block_inputs, noise))
    return SlotLearner(allocation, start, scales_L, tower.block_inputs)


def _added(
    allocation: Allocation,
    carried: SlotPrompts,
    init: Init,
    block_inputs: Callable[[SlotPrompts], Tensor],
    noise: Callable[..., Tensor],
) -> Tensor:
    """What the slots that blocks add hold at first, [n, M, D].

    normal: N(0, 0.02), as in the code of arXiv 2502.14125. Else the states that the carried slots have there, which are
    of the right size in each block: those slots count twice, and twins part as soon as their gradients differ.
    """
    blocks = allocation.added
    if init == "normal":
        return NOISE * noise(len(blocks), *block_inputs(carried).shape[1:])
    return block_inputs(carried)[blocks.start : blocks.stop]


def _replacing_noise(
    allocation: Allocation, sigma_L: Tensor, slots: int, width: int, noise: Callable[..., Tensor]
) -> SlotPrompts:
    """Replacing prompts drawn apart for every letter, block and slot, each block in its own size."""
    drawn = {
        letter: sigma_L[blocks.start : blocks.stop, None, None] * noise(len(blocks), slots, width)
        for letter, blocks in allocation.blocks.items()
    }
    return SlotPrompts(context=None, replace=True, **drawn)


def _words(tower: TextTower, prompts: Prompts) -> Tensor:
    """The token embeddings of the context; a refusal advises another value of the key `context`."""
    try:
        return tower.embed_words(prompts.context, prompts.position).detach()
    except UsageError as problem:
        hint = f"set context to words of at most {tower.most_slots} tokens; a shorter one leaves more room for names"
        raise problem.reworded(hint=hint) from problem


def _check_length(prompts: Prompts, tokens: int, tower: TextTower) -> None:
    if prompts.length > tower.most_slots:
        raise UsageError(
            f"length = {prompts.length} slots: the text tower has room for 1 to {tower.most_slots}",
            hint="set length = 0 for as many as the context has tokens, or a smaller one",
        )
    slots = prompts.length or tokens
    if prompts.init == "template" and slots != tokens:
        raise UsageError(
            f"{slots} slots cannot start as {prompts.context!r}, which has {tokens} tokens",
            hint="set length = 0, or init = 'words' or 'normal'",
        )
    if prompts.init == "words" and slots < tokens:
        raise UsageError(
            f"{slots} slots are too few for the {tokens} tokens of {prompts.context!r}",
            hint="shorten the context, raise length, or set init = 'normal'",
        )
    if prompts.init == "template" and prompts.structure == "accumulate":
        raise UsageError(
            "slots that blocks add change what a hand-written template gives: accumulate cannot start as it",
            hint="set init = 'words', in which added slots begin as the words' states in their block, or 'normal'",
        )
    if prompts.position != "before" and prompts.structure == "accumulate":
        raise UsageError(
            f"slots {prompts.position} the name: blocks of accumulate add theirs before it",
            hint="set position = 'before', or another structure",
        )
    replaced = prompts.init == "template" and prompts.replaces
    if replaced and not tower.shares_slot_states:
        raise UsageError(
            "in a text tower without a causal mask, slots have other states for every name: "
            f"{prompts.structure} cannot start as them",
            hint="set init = 'words', which takes the states beside no name",
        )
    if replaced and prompts.position != "before":
        raise UsageError(
            f"slots {prompts.position} the name have other states for every name: "
            f"{prompts.structure} cannot start as them",
            hint="set position = 'before', or init = 'words', which takes the states before a name",
        )


def image_learner(tower: ImageTower, prompts: Prompts, seed: int = 0) -> SlotLearner:
    """The trainable prompts of an image tower at their start.

    No words say what an image slot should hold and no slot has a position: equal ones would stay equal for ever. So
    slots begin as N(0, 0.02) with zero deltas (VPT, arXiv 2203.12119). Replacing prompts begin as the states that such
    slots have in front of one grey image at the input of each block.

    `init` = template: the slots are behind a gate in every block, which begins closed and is trained: step 0 is the
    frozen student exactly (LLaMA-Adapter, arXiv 2303.16199). words, normal: no gate; the slots count at once.

    Args:
        tower: the student's.
        prompts: what they are and how they begin; context, length, depth and position are about text and not read.
        seed: of the slots' noise.

    Raises:
        UsageError: a depth beyond the tower.
    """
    allocation = allocate(prompts.structure, tower.layers, prompts.image_depth, key="image_depth")
    sigma_L = tower.patch_scales()
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(sigma_L)

    start = SlotPrompts(NOISE * noise(prompts.image_length, tower.width))
    if allocation.replace:
        start = replacing(allocation, start, tower.block_inputs(start))
    if allocation.added:  # nothing else tells a new slot from those that came before
        start = replace(start, added=_added(allocation, start, "normal", tower.block_inputs, noise))
    if prompts.init == "template":
        start = replace(start, gate=torch.zeros_like(sigma_L))
    scales_L = sigma_L if prompts.layer_scale else torch.ones_like(sigma_L)
    return SlotLearner(allocation, start, scales_L, tower.block_inputs)
