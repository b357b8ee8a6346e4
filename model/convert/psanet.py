"""PSANet of semseg."""

from math import isqrt
from typing import Any

from model.convert.source import AS_SEMSEG, SEMSEG, Rules, Source, Weights, set_stem

SEMSEG_PSA: Rules = (
    *SEMSEG,
    (r"^psa\.(reduce|attention)\.", r"branches.0.\1."),
    (r"^psa\.(reduce|attention)_p\.", r"branches.1.\1."),
    (r"^psa\.proj\.", "project."),
    (r"^cls\.", "classifier."),
)
LAST = "branches.0.attention.3.weight"


def adapt(weights: Weights, network: dict[str, Any]) -> None:
    """The window is a square; one branch collects or distributes, or both do."""
    set_stem(weights, network)
    side = isqrt(len(weights[LAST]))
    network["mask"] = [side, side]
    if "branches.1.reduce.0.weight" not in weights:
        raise ValueError("PSANet with one of its branches: the file does not say which")


SOURCES = (
    Source(
        "semseg", "psa.reduce.0.weight", SEMSEG_PSA, "psanet", "classifier.4", needed=(LAST,),
        adapt=adapt, **AS_SEMSEG,
    ),
)  # fmt: skip
