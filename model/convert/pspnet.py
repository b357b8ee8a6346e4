"""PSPNet of semseg and mmsegmentation."""

from typing import Any

from model.convert.source import (
    AS_SEMSEG,
    MMSEG,
    SEMSEG,
    Rules,
    Source,
    Weights,
    adapt_mmseg,
    mmseg_block,
    set_stem,
)

SEMSEG_PSP: Rules = (
    *SEMSEG,
    (r"^ppm\.features\.", "classifier.0.pools."),
    *((rf"^cls\.{place}\.", f"classifier.{place + 1}.") for place in (0, 1, 4)),
)
MMSEG_PSP: Rules = (
    *MMSEG,
    *mmseg_block(r"decode_head\.psp_modules\.(\d)\.1", r"classifier.0.pools.\1", 1),
    *mmseg_block(r"decode_head\.bottleneck", "classifier", 1),
    (r"^decode_head\.conv_seg\.", "classifier.5."),
)


def adapt(weights: Weights, network: dict[str, Any]) -> None:
    """mmsegmentation's heads are narrower on ResNet-18."""
    heads = {"head_channels": "classifier.1.weight", "aux_channels": "aux_classifier.0.weight"}
    network |= {option: len(weights[key]) for option, key in heads.items() if key in weights}
    adapt_mmseg(weights, network)


SOURCES = (
    Source(
        "semseg", "ppm.features.0.1.weight", SEMSEG_PSP, "pspnet", "classifier.5",
        adapt=set_stem, **AS_SEMSEG,
    ),
    Source(
        "mmsegmentation", "decode_head.psp_modules.0.1.conv.weight", MMSEG_PSP, "pspnet",
        "classifier.5", adapt=adapt,
    ),
)  # fmt: skip
