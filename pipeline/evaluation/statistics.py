"""What a handful of runs can tell: spread over seeds, paired tests, their correction, and the bootstrap over images.

This module knows no files and no plots; all figures are plain numbers, and accuracies are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teachonce.core.streams import BOOTSTRAP

BINS = 15
_BLOCK = 1024  # number of images that are computed at once

LEVEL = 0.05  # a corrected p below this level tells a setting from the base
DRAWS = 4000  # draws of the bootstrap: between seeds the ends of its interval move by about 1/50 of its length
EQUAL = 1e-12  # differences closer than this are the same number

Credits = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Summary:
    """The mean of one setting over seeds, and how far seeds lie apart."""

    mean: float
    spread: float | None
    """Standard deviation over seeds, with n - 1; None for one seed."""
    n: int


@dataclass(frozen=True)
class Paired:
    """A setting against the base, seed by seed."""

    difference: float
    """Mean difference over the seeds that both settings have."""
    spread: float | None
    """Standard deviation of the differences; None for one seed."""
    interval: tuple[float, float] | None
    """95 % interval of Student's t for the mean difference; None for one seed."""
    p: float | None
    """Two-sided p of the paired t test; None where the test says nothing: one seed, or equal differences."""
    n: int


def summarise(values: Sequence[float]) -> Summary:
    """Compute mean and spread of at least one value."""
    data = np.asarray(values, dtype=np.float64)
    return Summary(float(data.mean()), float(data.std(ddof=1)) if len(data) > 1 else None, len(data))


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> Paired | None:
    """Compare two settings over the seeds that both have (Student's paired t test, `scipy.stats.ttest_rel`).

    Seeds decide initialisation, order and which samples are held out: pairing removes what both settings share.

    Args:
        values, base: a figure for each seed.

    Returns:
        The comparison; None without a common seed.
    """
    seeds = sorted(values.keys() & base.keys())
    if not seeds:
        return None
    figures, base_figures = (np.array([side[seed] for seed in seeds]) for side in (values, base))
    return _compared(figures, base_figures)


def against_constant(values: Sequence[float], constant: float) -> Paired:
    """Compare a setting with a figure that has no seed, such as that of the template (one-sample t test)."""
    figures = np.asarray(values, dtype=np.float64)
    return _compared(figures, np.full(len(figures), constant))


def _compared(figures: npt.NDArray[np.float64], base_figures: npt.NDArray[np.float64]) -> Paired:
    from scipy import stats

    differences, n = figures - base_figures, len(figures)
    mean = float(differences.mean())
    if n < 2:
        return Paired(mean, None, None, None, n)
    spread = float(differences.std(ddof=1))
    if spread < EQUAL:
        return Paired(mean, 0.0, (mean, mean), 1.0 if abs(mean) < EQUAL else None, n)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * spread / math.sqrt(n)
    return Paired(mean, spread, (mean - half, mean + half), float(stats.ttest_rel(figures, base_figures).pvalue), n)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for being several (Holm 1979): the chance of any false finding among them stays at the level.

    Args:
        p_values: of all tests of one family; None where there was no test, which does not count.

    Returns:
        In the same order, the smallest level at which each would be a finding.
    """
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i] or 0.0)
    corrected: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, i in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * (p_values[i] or 0.0)))
        corrected[i] = reached
    return corrected


def smallest_telling(n: int) -> float | None:
    """Return how many times its own spread a mean difference of n pairs must be for p < 0.05 before any correction."""
    if n < 2:
        return None
    from scipy import stats

    return float(stats.t.ppf(1 - LEVEL / 2, n - 1)) / math.sqrt(n)


def bootstrap(credits: Credits, base_credits: Credits, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean difference over images, by drawing images with return (paired, percentile).

    The interval says how far the figure depends on which images are in the set; it says nothing of seeds.

    Args:
        credits, base_credits: [n] credit of each image, the mean over the seeds that both have.
        seed: the seed of the draws.
    """
    difference = credits.astype(np.float64) - base_credits.astype(np.float64)
    # Images of equal difference are alike, so their number is multinomial: the same distribution, fewer draws.
    values, counts = np.unique(np.round(difference, 9), return_counts=True)
    n = len(difference)
    random = BOOTSTRAP.at(seed)
    means = random.multinomial(n, counts / n, size=DRAWS) @ values / n
    low, high = np.percentile(means, [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    return float(low), float(high)


@torch.inference_mode()
def likelihoods(
    images_NE: Tensor, classes_CE: Tensor, labels_N: Tensor, inverse_C: Tensor, scale: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compute -ln p of each image's class, and the probability of its best class, on the device of the image features.

    Probabilities are softmax(scale * cosine) over classes.

    Classes of one name have one logit each, as many times as there are classes: m of them share the probability of
    their name as they share the credit.

    Args:
        images_NE: unit image features.
        classes_CE: unit text features.
        labels_N: class index of each image.
        inverse_C: from `models.classifier.equal_rows`; logits are computed once for each number.
        scale: the model's own factor, as trained.

    Returns:
        NLL in nats [N], confidence [N].
    """
    device, count, inverse = images_NE.device, int(inverse_C.max()) + 1, inverse_C.to(images_NE.device)
    first = torch.full((count,), len(inverse_C), device=device)
    first = first.scatter_reduce(0, inverse, torch.arange(len(inverse_C), device=device), "amin")
    names, log_size = classes_CE.to(device)[first], torch.bincount(inverse, minlength=count).float().log()
    nll, confidence = [], []
    for images, labels in zip(torch.split(images_NE, _BLOCK), torch.split(labels_N.to(device), _BLOCK), strict=True):
        logits = scale * (images.float() @ names.T)
        total = torch.logsumexp(logits + log_size, dim=1)
        of_label = logits.gather(1, inverse[labels][:, None])[:, 0]
        nll.append(total - of_label)
        confidence.append(logits.amax(dim=1) - total)
    return torch.cat(nll).cpu().double().numpy(), torch.cat(confidence).cpu().double().exp().numpy()


def expected_calibration_error(
    confidence_N: npt.NDArray[np.float64], credit_N: npt.NDArray[np.float64], bins: int = BINS
) -> float:
    """Average the distance of confidence and accuracy over bins of equally many images, weighted by their size.

    Images are sorted by confidence and cut into `bins` runs whose sizes differ by one at most (Nixon et al., "Measuring
    Calibration in Deep Learning", arXiv 1904.01685, adaptive bins of the top class).
    """
    order = np.argsort(confidence_N, kind="stable")
    gap = sum(abs(float((confidence_N[part] - credit_N[part]).sum())) for part in np.array_split(order, bins))
    return gap / len(confidence_N)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p: how likely is a split at least as uneven of the images that just one of two got right?

    Under "both are right equally often" each of them goes either way with probability 1/2 (McNemar 1947, exact form).
    """
    from scipy.stats import binomtest  # takes a second to import

    total = only_first + only_second
    return 1.0 if total == 0 else float(binomtest(only_first, total, 0.5).pvalue)


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of Wilson (1927) for a share of n independent trials."""
    if n == 0:
        return 0.0, 1.0
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
