"""What the column groups of a store depend on, field by field; a store is continued and read only if all fields agree.

The field `about` is for people and is never compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from teachonce import __version__
from teachonce.core.machine import package_versions
from teachonce.data.manifests import Manifest
from teachonce.data.view_policy import ViewPolicy
from teachonce.data.vocabulary import Vocabulary
from teachonce.labels.codec import CODEC_VERSION
from teachonce.labels.create import BLOCK
from teachonce.models.spec import Precision, Resize

if TYPE_CHECKING:
    from teachonce.models.clip import LoadedClip

TEMPERATURES = (1.0, 2.0, 4.0)
ORDER_SEED = 0
ONE_VIEW = ViewPolicy()


def label_fingerprint(
    manifest: Manifest,
    split: str,
    vocabulary: Vocabulary,
    vocabulary_spec: str | None,
    top_k: int,
    views: ViewPolicy = ONE_VIEW,
    resize: Resize = "pillow",
) -> dict[str, Any]:
    """Make the fingerprint of the column group `labels`, without what a teacher adds."""
    return {
        "manifest": manifest.name,
        "manifest_digest": manifest.digest(split),
        "split": split,
        "vocabulary_digest": vocabulary.digest,
        "views": _views(views),
        **_resized(resize),
        "row_order": f"blocks of {BLOCK}, seed {ORDER_SEED}",
        "top_k": top_k,
        "codec_version": CODEC_VERSION,
        "about": {
            "teachonce": __version__,
            "versions": package_versions(),
            "vocabulary": vocabulary_spec or "manifest",
        },
    }


def with_teacher(
    fields: dict[str, Any], teacher: LoadedClip, templates: tuple[str, ...], precision: Precision
) -> dict[str, Any]:
    """Return the fields together with those that a teacher adds."""
    # A bias is the same for all classes, so it cancels in the softmax of soft labels; the weights' digest holds it.
    bias = {} if teacher.logit_bias is None else {"logit_bias": teacher.logit_bias}
    return fields | {
        "teacher_digest": teacher.digest,
        "teacher_behaviour": dict(teacher.behaviour),
        "precision": precision,
        "logit_scale": teacher.logit_scale,
        "preprocess": teacher.preprocess_text,
        "templates": list(templates),
        "temperatures": list(TEMPERATURES),
        "about": fields["about"] | {"teacher": teacher.spec} | bias,
    }


def _views(policy: ViewPolicy) -> Any:
    """Describe the views; a single view is each model's own evaluation transform, whatever the policy says."""
    return policy.to_dict() if policy.views > 1 else 1


def _resized(resize: Resize) -> dict[str, Any]:
    """Who resized the images; nothing for Pillow, so that stores of earlier versions say the same."""
    return {} if resize == "pillow" else {"resize": resize}


def embedding_fingerprint(
    teacher: LoadedClip, precision: Precision, samples: str, views: ViewPolicy = ONE_VIEW
) -> dict[str, Any]:
    """Make the fingerprint of the teacher's image embeddings; they do not depend on names and templates."""
    return _of_images("teacher", teacher, precision, samples, views)


def student_fingerprint(
    student: LoadedClip, precision: Precision, samples: str, views: ViewPolicy = ONE_VIEW
) -> dict[str, Any]:
    """Make the fingerprint of a student's image features."""
    return _of_images("student", student, precision, samples, views)


def _of_images(
    role: Literal["teacher", "student"], model: LoadedClip, precision: Precision, samples: str, views: ViewPolicy
) -> dict[str, Any]:
    return {
        **({"views": _views(views)} if views.views > 1 else {}),
        f"{role}_digest": model.digest,
        f"{role}_behaviour": dict(model.image_behaviour),
        "precision": precision,
        "preprocess": model.preprocess_text,
        **_resized(model.resize),
        "samples": samples,
        "about": {role: model.spec, "teachonce": __version__},
    }
