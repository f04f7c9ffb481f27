"""What an audit found, in sentences: the answer first."""

from __future__ import annotations

from collections.abc import Iterator

from teachonce.phrases import phrase
from teachonce.stages.audit.request import AuditResult

SIGNIFICANT = 0.05


def sentences(result: AuditResult) -> Iterator[str]:
    """The headline of an audit."""
    numbers = result.found
    if result.share_wrong is not None:
        yield (
            f"{numbers['label']:,} of {result.labelled:,} labels are probably wrong; an estimated "
            f"{100 * result.share_wrong:.1f} % of all labels are."
        )
    else:
        yield f"No label was judged: no class has enough photos with a label among the {result.samples:,}."
    yield (
        f"{numbers['duplicate']:,} photos are near-duplicates of others."
        + (f" {numbers['across']:,} are near-duplicates of new photos." if result.drift else "")
        + (
            f" Of {numbers['outside']:,} the teacher is sure that they show a class without photos."
            * bool(numbers["outside"])
        )
    )
    calibration = result.calibration
    if calibration:
        side = "too sure" if calibration["temperature"] > 1 else "not sure enough"
        yield (
            f"The teacher agrees with {100 * calibration['top1']:.1f} % of the labels and is {side}: a temperature of "
            f"{calibration['temperature']:.2f} takes its calibration error from {100 * calibration['ece']:.1f} to "
            f"{100 * calibration['ece_temperature']:.1f} points."
        )
    if result.classes_without_photos:
        yield f"{result.classes_without_photos:,} classes of the class list have no photo."
    yield from _drift(result)
    if result.left_out:
        yield (
            phrase("{clean} of `teachonce subset` takes the list and leaves ")
            + f"{result.left_out:,} samples out; change its column leave_out where you think otherwise."
        )


def _drift(result: AuditResult) -> Iterator[str]:
    drift = result.drift
    if not drift:
        return
    tests = {
        "the photos differ": drift["photos"],
        "they differ within the predicted classes": drift["within_classes"],
        "other classes are predicted": drift["predictions"],
    }
    said = [
        f"{words if test['p'] <= SIGNIFICANT else 'no sign that ' + words} (p {test['p']:.3g})"
        for words, test in tests.items()
        if test
    ]
    yield f"New photos against taught ones: {'; '.join(said)}."
    far, new = drift["far"], drift["new"]
    yield f"{far:,} of {new:,} new photos lie further from all taught ones than those from each other."
