"""FCN of torchvision and mmsegmentation."""

from model.convert.source import MMSEG, Rules, Source, adapt_mmseg, mmseg_block

MMSEG_FCN: Rules = (
    *MMSEG,
    *mmseg_block(r"decode_head\.convs\.0", "classifier.convs", 0),
    *mmseg_block(r"decode_head\.convs\.1", "classifier.convs", 3),
    *mmseg_block(r"decode_head\.conv_cat", "classifier.merge", 0),
    (r"^decode_head\.conv_seg\.", "classifier.merge.4."),
)
SOURCES = (
    Source("torchvision", "classifier.0.weight", (), "fcn", "classifier.4"),
    Source(
        "mmsegmentation", "decode_head.conv_cat.conv.weight", MMSEG_FCN, "fcn",
        "classifier.merge.4", network={"concat": True}, adapt=adapt_mmseg,
    ),
)  # fmt: skip
