"""Wrong labels on purpose, a stated share of them: what an audit and losses are tried on.

Which samples get a wrong label depends on their keys and the seed alone, whatever the order of the rows. The samples of
a small share are among those of a larger one with the same seed.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from teachonce.data.index import SampleIndex
from teachonce.data.places import name_bytes
from teachonce.data.views import sample_name
from teachonce.data.vocabulary import Vocabulary
from teachonce.errors import DataError
from teachonce.labels.store import LabelStore

PERSON = b"label noise"
"""Sets these hashes apart from those by which shots are drawn."""


def noisy_labels(store: LabelStore, vocabulary: Vocabulary, share: float, seed: int) -> npt.NDArray[np.int32]:
    """The labels of a store with wrong ones among them.

    A label of a class that has photos and a name in the vocabulary becomes, with the probability `share`, another such
    class; all of these are equally probable. Other labels stay.

    Args:
        store: whose index is read.
        vocabulary: that of the store that will hold the labels.
        share: of wrong labels, between 0 and 1.
        seed: of the draw, 0 or above.

    Returns:
        [samples], in row order, as `index/label` holds them.

    Raises:
        DataError: fewer than two classes have photos and a name.
    """
    label: npt.NDArray[np.int32] = store.static("index/label").astype(np.int32)
    known = vocabulary.index
    ids = store.label_classes().ids
    classes = np.array([c for c in np.unique(label[label >= 0]).tolist() if ids[c] in known], np.int64)
    if len(classes) < 2:
        raise DataError(
            f"{store.path}: wrong labels need two classes with photos and a name, found {len(classes)}",
            hint=f"teachonce inspect {store.path} shows what there is",
        )
    layout = store.layout
    for chunk in range(layout.chunks):
        start, stop = (edge // layout.views for edge in layout.bounds(chunk))
        draws = _draws(store.index_of_chunk(chunk), seed)
        given = label[start:stop]
        takes_part = np.isin(given, classes) & (draws[:, 0] < share)
        place = np.searchsorted(classes, given[takes_part])
        step = 1 + np.minimum(draws[takes_part, 1] * (len(classes) - 1), len(classes) - 2).astype(np.int64)
        given[takes_part] = classes[(place + step) % len(classes)]
    return label


def _draws(index: SampleIndex, seed: int) -> npt.NDArray[Any]:
    """Two numbers from 0 to 1 for each sample, [samples, 2]: a keyed hash of its name."""
    secret = seed.to_bytes(8, "little")
    names = (name_bytes(sample_name(index.key(sample))) for sample in range(len(index)))
    hashes = [hashlib.blake2b(name, digest_size=16, key=secret, person=PERSON).digest() for name in names]
    return np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2) / 2.0**64
