"""Semantic FPN of mmsegmentation and segmentation_models_pytorch."""

from model.convert.source import MMSEG, Rules, Source, set_stem

# A level's convolutions: in mmsegmentation, upsampling stands between them; SMP begins at the top.
MMSEG_FPN: Rules = (
    *MMSEG,
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"lateral.\1."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"output.\1."),
    *(
        (rf"^decode_head\.scale_heads\.(\d)\.{2 * n}\.{part}\.", rf"levels.\1.{n}.{place}.")
        for n in range(3)
        for place, part in enumerate(("conv", "bn"))
    ),
    (r"^decode_head\.conv_seg\.", "classifier.1."),
)
SMP_FPN: Rules = (
    (r"^encoder\.", "backbone."),
    (r"^decoder\.p5\.", "lateral.3."),
    *((rf"^decoder\.p{n + 2}\.skip_conv\.", f"lateral.{n}.") for n in range(3)),
    *(
        (rf"^decoder\.seg_blocks\.{3 - n}\.block\.(\d)\.block\.", rf"levels.{n}.\1.")
        for n in range(4)
    ),
    (r"^segmentation_head\.0\.", "classifier.1."),
)
SOURCES = (
    Source(
        "mmsegmentation", "decode_head.scale_heads.0.0.conv.weight", MMSEG_FPN, "fpn",
        "classifier.1", network={"output_convs": True, "level_norm": "bn"}, adapt=set_stem,
    ),
    Source(
        "segmentation_models_pytorch", "decoder.p5.weight", SMP_FPN, "fpn", "classifier.1",
        network={"align_corners": True}, compat={"align_corners": True},
    ),
)  # fmt: skip
