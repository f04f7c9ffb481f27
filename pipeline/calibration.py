"""How far probabilities can be believed, and whether two classifiers differ: NLL, ECE, McNemar's test.

It fits nothing: no temperature is ever chosen on the images that are reported.

Shapes: N images, C classes, E embedding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BINS = 15
_BLOCK = 1024  # images at once


@torch.inference_mode()
def likelihoods(
    images_NE: Tensor, classes_CE: Tensor, labels_N: Tensor, inverse_C: Tensor, scale: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """-ln p of each image's class, and the probability of its best class, under softmax(scale * cosine) over classes.

    Classes of one name have one logit each, as many times as there are classes: m of them share the probability of
    their name as they share the credit.

    Args:
        images_NE: unit image features.
        classes_CE: unit text features.
        labels_N: class index of each image.
        inverse_C: from `zeroshot.equal_rows`; logits are computed once for each number.
        scale: the model's own, as trained.

    Returns:
        NLL in nats [N], confidence [N].
    """
    count = int(inverse_C.max()) + 1
    first = torch.full((count,), len(inverse_C)).scatter_reduce(0, inverse_C, torch.arange(len(inverse_C)), "amin")
    log_size = torch.bincount(inverse_C, minlength=count).float().log()
    nll, confidence = [], []
    for images, labels in zip(torch.split(images_NE, _BLOCK), torch.split(labels_N, _BLOCK), strict=True):
        logits = scale * (images.float() @ classes_CE[first].T)
        total = torch.logsumexp(logits + log_size, dim=1)
        mine = logits.gather(1, inverse_C[labels][:, None])[:, 0]
        nll.append((total - mine).double())
        confidence.append((logits.amax(dim=1) - total).double().exp())
    return torch.cat(nll).numpy(), torch.cat(confidence).numpy()


def expected_calibration_error(
    confidence_N: npt.NDArray[np.float64], credit_N: npt.NDArray[np.float64], bins: int = BINS
) -> float:
    """Mean distance of confidence and accuracy over bins of equally many images, weighted by their size.

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
