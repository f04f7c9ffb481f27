"""Files that hold one context for all names, at the text tower's input: CoOp, POMP, ProGrad and KgCoOp.

CoOp: arXiv 2109.01134; POMP: arXiv 2304.04704; ProGrad: arXiv 2205.14865; KgCoOp: arXiv 2303.13283.

The state dict is that of the prompt learner alone: `ctx`, and the embeddings around it in each prompt, `token_prefix`
(the start token) and `token_suffix` (name, full stop, end token and padding). KgCoOp's learner also has `bias_vectors`
and a one-layer `meta_net`, which its code neither trains nor reads; CoCoOp's `meta_net` has a second layer, and moves
the context for each image.
"""

from __future__ import annotations

from teachonce.errors import DataError
from teachonce.foreign.checkpoint import Checkpoint, is_plain, names_of
from teachonce.foreign.prompts import ForeignPrompts, Method

_USED = ("ctx", "token_prefix", "token_suffix")
_MARK_OF_KGCOOP = "bias_vectors"
_UNUSED_BY_KGCOOP = (_MARK_OF_KGCOOP, "meta_net.linear1.weight", "meta_net.linear1.bias")
_ROUNDING = 2.0**-10  # relative; a start token that was kept in float16 is off by half of it
_PROMPTKD = "VPT_image_trans."  # PromptKD's projection into its teacher's space


def context_alone(checkpoint: Checkpoint) -> ForeignPrompts:
    """Read a generic context.

    Raises:
        DataError: as `read_foreign` has it.
    """
    state, file = checkpoint.state, checkpoint.file
    if "ctx" not in state:
        if any(str(name).startswith(_PROMPTKD) for name in state):
            raise DataError(
                f"{file} is a student of PromptKD: it classifies in its teacher's space, through {_PROMPTKD[:-1]}, and "
                "has no prompts of a text tower",
                hint="give the prompt learner of a run whose student has a text side, such as PromptSRC's",
            )
        raise DataError(
            f"{file} holds no context: expected 'ctx' in its state_dict, found {names_of(state)}",
            hint="give the prompt learner of a run of CoOp, POMP, KgCoOp, ProGrad, MaPLe or PromptSRC",
        )
    method: Method = "KgCoOp" if _MARK_OF_KGCOOP in state else "CoOp"
    checkpoint.require_used(
        _USED + (_UNUSED_BY_KGCOOP if method == "KgCoOp" else ()), f"the context of {_whose(method)}"
    )
    ctx = state["ctx"]
    if is_plain(ctx) and ctx.ndim == 3:
        raise DataError(
            f"{file} holds a context of its own for each of its {ctx.shape[0]} classes, {list(ctx.shape)}; other names "
            "have none",
            hint="give a run with one context for all classes (TRAINER.COOP.CSC False)",
        )
    context = checkpoint.slots("ctx")
    start, positions = checkpoint.around(context)
    return ForeignPrompts(
        method=method,
        context=context,
        start=start,
        positions=positions,
        rounding=_ROUNDING,
        epoch=checkpoint.epoch,
        digest=checkpoint.digest,
    )


def _whose(method: Method) -> str:
    return "CoOp, POMP or ProGrad" if method == "CoOp" else method
