"""Compare the decisions of guards bit by bit."""

from __future__ import annotations

import numpy as np

from zipsdk.decision import Decision


def content(decision: Decision) -> tuple:
    """Return everything in a decision as values that can be compared and hashed; NaN equals NaN."""
    scores, image = (None if a is None else np.asarray(a) for a in (decision.class_scores, decision.image))
    return (
        decision.label,
        decision.flagged,
        repr(decision.suspicion),
        None if scores is None else (str(scores.dtype), scores.tobytes()),
        decision.reason,
        None if image is None else (str(image.dtype), image.shape, image.tobytes()),
        decision.error,
        decision.feature,
    )
