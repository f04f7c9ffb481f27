"""A matrix with residuals behind it: what each learns from, and what a handicap does to whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from teachonce.heads.heads import head_of
from teachonce.heads.kinds import HeadKind, HeadMeta
from teachonce.heads.verbs import Head

WIDTH, SCALE = 6, 20.0
KNOWN = torch.tensor([1, -1, 0, -1])  # two of four classes are known


def drawn(kind: HeadKind, handicap: float = 0.0) -> tuple[Head, Tensor, Tensor]:
    """A head with random numbers in it, class vectors and image features."""
    random = torch.Generator().manual_seed(4)
    head = head_of(HeadMeta(kind=kind, width=WIDTH, handicap=handicap, names=("fox", "owl"), ids=("n1", "n2")))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    classes, images = (F.normalize(torch.randn(n, WIDTH, generator=random), dim=1) for n in (4, 5))
    return head, classes, images


@pytest.mark.parametrize("kind", ["linear", "projection+linear"])
def test_a_handicap_is_taken_from_the_logits_of_known_classes_and_of_no_others(kind: HeadKind) -> None:
    head, classes, images = drawn(kind, handicap=1.5)
    bare, *_ = drawn(kind)
    with torch.no_grad():
        logits = head.logits(classes, images, KNOWN, SCALE)
        without = bare.logits(classes, images, KNOWN, SCALE)
        scored = SCALE * head.scoring_images(images) @ head.scoring_classes(classes, KNOWN, SCALE).T
    for number, row in enumerate(KNOWN.tolist()):
        expected = without[:, number] - (1.5 if row >= 0 else 0.0)
        torch.testing.assert_close(logits[:, number], expected)
    torch.testing.assert_close(scored, logits)


@pytest.mark.parametrize("kind", ["linear", "projection+linear"])
def test_training_does_not_see_the_handicap(kind: HeadKind) -> None:
    """A loss among known and unknown classes would only learn to undo it."""
    (head, classes, images), (bare, *_) = drawn(kind, handicap=1.5), drawn(kind)
    for ours, plain in zip(
        head.training_logits(classes, images, KNOWN, SCALE),
        bare.training_logits(classes, images, KNOWN, SCALE),
        strict=True,
    ):
        assert torch.equal(ours, plain)


def test_classes_are_moved_by_the_matrix_and_known_ones_by_their_residual_as_well() -> None:
    head, classes, _ = drawn("projection+linear")
    matrix, residual = head.tensors()["matrix"], head.tensors()["residual"]
    with torch.no_grad():
        moved = head.classes(classes, KNOWN)
    for number, row in enumerate(KNOWN.tolist()):
        vector = classes[number] + classes[number] @ matrix
        vector = vector / vector.norm()
        if row >= 0:
            vector = vector + residual[row]
        torch.testing.assert_close(moved[number], vector / vector.norm())


def test_the_matrix_learns_as_if_there_were_no_residuals() -> None:
    """Its gradient is that of a matrix alone; residuals get theirs behind the matrix as it is."""
    head, classes, images = drawn("projection+linear")
    alone = head_of(HeadMeta(kind="projection", width=WIDTH))
    alone.load({"matrix": head.tensors()["matrix"]})
    labels = torch.tensor([0, 1, 2, 3, 0])
    both = [F.cross_entropy(x, labels) for x in head.training_logits(classes, images, KNOWN, SCALE)]
    torch.stack(both).sum().backward()
    F.cross_entropy(alone.logits(classes, images, KNOWN, SCALE), labels).backward()
    of_both = {name: parameter.grad for name, parameter in head.named_parameters()}
    torch.testing.assert_close(of_both["matrix"], next(alone.parameters()).grad)
    assert of_both["residual"] is not None and bool((of_both["residual"].norm(dim=1) > 0).all())
