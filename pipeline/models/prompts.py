"""What prompts are: the keys by which a run asks for them, and what their file says once they are made.

A new property of prompts is a key of `Prompts` and, where whoever loads them must know it, a field of that name in
`PromptMeta`. This module holds no tensors (`slots`) and makes none (`learner`); it loads nothing heavy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from teachonce import __version__
from teachonce.core.strict import LATER, OURS, Above, AtLeast, Idle, Source, Table, idle
from teachonce.heads.kinds import HeadMeta
from teachonce.towers.structures import REPLACING, Init, Position, Structure, allocate, written

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip
    from teachonce.towers.image_tower import ImageTower
    from teachonce.towers.slots import SlotPrompts
    from teachonce.towers.text_tower import TextTower

Tower = Literal["text", "image", "both", "none"]
"""Which of the student's towers carry prompts; none: there is a head alone."""
IMAGES = 'tower = "image" or "both"'
NOT_TEXT = Idle(("tower",), lambda values: values["tower"] in ("text", "none"), needs=IMAGES)
NOT_IMAGE = Idle(("tower",), lambda values: values["tower"] in ("image", "none"))
NO_PROMPTS = idle(tower="none")
NOT_BOTH = Idle(("tower",), lambda values: values["tower"] != "both", needs='tower = "both"')
COUPLED = idle(tower="both", coupled=True)  # the text slots then say how many there are, and how deep


def _starts_alike(values: Mapping[str, Any]) -> bool:
    """Whether the slots are just the template's words, so that init = 'words' and 'template' are the same start."""
    carried = values["structure"] not in REPLACING or values["position"] == "before"
    known = carried and values["structure"] != "accumulate"  # of which the template is no start
    return (values["tower"], values["length"]) == ("text", 0) and known


@dataclass(frozen=True, kw_only=True)
class Prompts(Table):
    """What carries prompts, what they are and how they begin."""

    tower: Annotated[Tower, Source("POMP; RPP's encoders are not known to us")] = "text"
    """Which of the student's towers carries prompts. image, both: images are read in training (`--root`).
    none: no prompts, a head alone on the context's class vectors ([head])."""
    structure: Annotated[
        Structure,
        NO_PROMPTS,
        Source('ours: carried, so that the query prompt lives; RPP as reported: "unshared-replace"'),
    ] = "unshared"
    """shared: context vectors at the input (CoOp, POMP). unshared: query/key/value prompts in each layer on top of the
    carried slot states (ours). unshared-replace: such prompts in place of the slot states (RPP as reported by third
    parties). shared-replace: one new state a slot in each layer (MaPLe, PromptSRC). Letters (q, k, v, r for the
    residual) are ablations of unshared. accumulate: each layer adds slots, and those of earlier layers stay (arXiv
    2502.14125); not with init = "template" in the text tower."""
    context: Annotated[str, Source("ours: step 0 is the hand-written template exactly; POMP starts from noise")] = (
        "a photo of a"
    )
    """Words whose token embeddings initialise the slots. Step 0 is this template where init = "template"."""
    length: Annotated[int, AtLeast(0), NOT_IMAGE, Source("ours: the four tokens of the context; POMP: 4 or 16")] = 0
    """Slots in the text tower; 0: as many as the context has tokens."""
    depth: Annotated[int, AtLeast(0), NOT_IMAGE, idle(structure="shared"), Source("ours: all layers")] = 0
    """The first `depth` layers of the text tower carry prompts; 0 means all."""
    init: Annotated[Init, NO_PROMPTS, Idle(("tower", "length"), _starts_alike, only="words"), OURS] = "template"
    """template: step 0 is the hand-written template exactly. words: as it, further slots are noise. normal: noise."""
    layer_scale: Annotated[
        bool, NO_PROMPTS, Source("ours: slot states differ a hundredfold in size between layers")
    ] = True
    """Measure prompts in units of the slot states at each layer, so that one learning rate suits all of them."""
    position: Annotated[Position, NOT_IMAGE, Source('POMP, CoOp\'s "end"')] = "before"
    """Where the slots stand, seen from the class name (CoOp: end, middle, front)."""
    image_length: Annotated[int, Above(0), NOT_TEXT, COUPLED, OURS] = 4
    """Slots in the image tower."""
    image_depth: Annotated[int, AtLeast(0), NOT_TEXT, COUPLED, idle(structure="shared"), OURS] = 0
    """The first `image_depth` layers of the image tower carry prompts; 0 means all."""
    coupled: Annotated[bool, NOT_BOTH, Source("MaPLe (arXiv 2210.03117); off"), LATER] = False
    """Image slots are learned linear maps of the text slots' prompts, layer by layer, as many and as deep as these
    (MaPLe, arXiv 2210.03117)."""

    @property
    def in_text(self) -> bool:
        """Whether the text tower carries prompts."""
        return self.tower in ("text", "both")

    @property
    def in_images(self) -> bool:
        """Whether the image tower carries prompts, so that images are read in training."""
        return self.tower in ("image", "both")

    @property
    def replaces(self) -> bool:
        """Whether prompts stand in for the slot states."""
        return self.structure in REPLACING


def coupled_depth(asked: Prompts, text_layers: int, image_layers: int) -> int:
    """How many blocks of the image tower have prompts that are maps of the text tower's: as many as both have."""
    return min(asked.depth or text_layers, image_layers)


@dataclass(frozen=True, kw_only=True)
class PromptMeta:
    """What prompts were made for, and with."""

    tower: Tower = "text"  # which towers have prompts
    structure: Structure
    context: str  # the words that the text slots began as
    position: Position = "before"  # of the text slots, relative to the name
    init: Init = "template"
    slots: int  # M of the text prompts, 0 without
    depth: int  # blocks of the text tower that carry prompts; 0: all; without effect for `shared`
    width: int  # D of the text tower, 0 without text prompts (early versions: D in any case)
    layers: int  # L of the text tower, likewise
    image_slots: int = 0  # M of the image prompts, 0 without
    image_depth: int = 0
    image_width: int = 0
    image_layers: int = 0
    image_gate: bool = False  # whether the image slots enter through a gate in every block
    student: str  # model spec, as `load_clip` takes it
    student_digest: str  # of the student's weights, as `load_clip` gives it
    student_behaviour: dict[str, str] = dataclasses.field(default_factory=dict)  # early versions wrote none
    suffix: str  # what follows a name
    version: str  # of this project
    head: HeadMeta | None = None  # of the head behind the towers; early versions had none

    @classmethod
    def of(
        cls,
        asked: Prompts,
        clip: LoadedClip,
        suffix: str,
        text_tower: TextTower | None,
        text: SlotPrompts | None,
        image_tower: ImageTower | None = None,
        image: SlotPrompts | None = None,
        head: HeadMeta | None = None,
    ) -> PromptMeta:
        """Describe prompts that were made as asked.

        Args:
            clip: the student.
            suffix: what follows a name.
            text_tower: needed where there are text prompts.
            text: the prompts of the text tower; None without.
            image_tower: needed where there are image prompts.
            image: likewise of the image tower.
            head: the head behind the towers; None without.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        values = {key.name: getattr(asked, key.name) for key in dataclasses.fields(asked) if key.name in fields}
        if image is None or image_tower is None:
            del values["image_depth"]
        else:
            if asked.coupled and text_tower is not None:
                values["image_depth"] = coupled_depth(asked, text_tower.layers, image_tower.layers)
            values |= {
                "image_slots": image.slots,
                "image_width": image_tower.width,
                "image_layers": image_tower.layers,
                "image_gate": image.gate is not None,
            }
        return cls(
            **values,
            slots=0 if text is None else text.slots,
            width=0 if text is None or text_tower is None else text_tower.width,
            layers=0 if text is None or text_tower is None else text_tower.layers,
            student=clip.spec,
            student_digest=clip.digest,
            student_behaviour=dict(clip.behaviour),
            suffix=suffix,
            version=__version__,
            head=head,
        )

    @property
    def template(self) -> str:
        """The sentence around a name that the text slots began as."""
        return written(self.context, self.suffix)

    def public(self) -> dict[str, Any]:
        """What an export says of the prompts, in the order of its card; nothing of a tower without prompts."""
        keys = ["tower", "structure", "init", "context"]
        if self.tower in ("text", "both"):
            keys += ["slots", "depth", "position"]
        if self.tower in ("image", "both"):
            keys += ["image_slots", "image_depth", "image_gate"]
        return {key: getattr(self, key) for key in (*keys, "suffix")}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that such prompts have, each with its shape; the names begin with the tower's.

        Raises:
            UsageError: a tower has fewer blocks than its depth.
        """
        towers = {
            "text": (self.slots, self.width, self.layers, self.depth),
            "image": (self.image_slots, self.image_width, self.image_layers, self.image_depth),
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for tower, (slots, width, layers, depth) in towers.items():
            if self.tower not in (tower, "both"):
                continue
            allocation = allocate(self.structure, layers, depth)
            if allocation.context:
                shapes[f"{tower}.context"] = (slots, width)
            for letter, blocks in allocation.blocks.items():
                shapes[f"{tower}.{letter}"] = (len(blocks), slots, width)
            if allocation.added:
                shapes[f"{tower}.added"] = (len(allocation.added), slots, width)
        if self.image_gate and self.tower in ("image", "both"):
            shapes["image.gate"] = (self.image_layers,)
        of_head = {} if self.head is None else self.head.shapes()
        return shapes | {f"head.{name}": shape for name, shape in of_head.items()}
