"""Class weights: the prompted text features of a list of names as a matrix, for detectors and plain NumPy.

`LoadedPrompts.classifier` computes the matrix; this module writes it. Three files list the same classes in one order.

Shapes: C classes, D embedding.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from teachonce.core.documents import readable
from teachonce.data.vocabulary import Vocabulary

ARRAY_FILE = "class_weights.npy"
TENSOR_FILE = "class_weights.safetensors"
CLASSES_FILE = "classes.tsv"
TENSOR = "weights"


def write_weights(folder: Path, weights: npt.NDArray[np.float32], classes: Vocabulary) -> tuple[str, ...]:
    """Write the matrix twice, and the classes of its rows.

    - class_weights.npy: [C, D] float32, unit rows. Detic takes it as it is (ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH): it
      transposes to [D, C] itself, and appends the background (arXiv 2201.02605, its released code).
    - class_weights.safetensors: the same as tensor `weights`; metadata `classes`: a JSON list of [id, name].
    - classes.tsv: `id TAB name`, a line a row.

    Args:
        weights: [C, D].
        classes: of the rows.

    Returns:
        The names of the files.
    """
    rows = np.ascontiguousarray(weights, dtype=np.float32)
    array = io.BytesIO()
    np.save(array, rows, allow_pickle=False)
    (folder / ARRAY_FILE).write_bytes(array.getvalue())
    # One key only: several would be written in the order of a hash map, which differs from process to process.
    pairs = json.dumps(list(zip(map(readable, classes.ids), classes.names, strict=True)), ensure_ascii=False)
    (folder / TENSOR_FILE).write_bytes(save({TENSOR: rows}, {"classes": pairs}))
    (folder / CLASSES_FILE).write_bytes(classes.to_tsv())
    return ARRAY_FILE, TENSOR_FILE, CLASSES_FILE
