"""PSPNet of semseg and mmsegmentation."""

from model.convert.source import (
    AS_SEMSEG,
    MMSEG,
    SEMSEG,
    Rules,
    Source,
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
SOURCES = (
    Source(
        "semseg", "ppm.features.0.1.weight", SEMSEG_PSP, "pspnet", "classifier.5",
        adapt=set_stem, **AS_SEMSEG,
    ),
    Source(
        "mmsegmentation", "decode_head.psp_modules.0.1.conv.weight", MMSEG_PSP, "pspnet",
        "classifier.5", adapt=adapt_mmseg,
    ),
)  # fmt: skip
