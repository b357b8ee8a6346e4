"""DeepLabV3+ of VainF, mmsegmentation and segmentation_models_pytorch."""

from typing import Any

from model.convert.source import (
    MMSEG,
    Rules,
    Source,
    Weights,
    adapt_mmseg,
    mmseg_block,
    mmseg_separable,
    pooling_last,
)

VAINF: Rules = (
    (r"^classifier\.project\.", "low_level."),
    (r"^classifier\.aspp\.", "aspp."),
    (r"^classifier\.classifier\.", "classifier."),
)
MMSEG_PLUS: Rules = (
    *MMSEG,
    *mmseg_block(r"decode_head\.aspp_modules\.0", "aspp.convs.0"),
    *mmseg_separable(r"decode_head\.aspp_modules\.(\d)", r"aspp.convs.\1"),
    *mmseg_block(r"decode_head\.image_pool\.1", "aspp.convs.4", 1),
    *mmseg_block(r"decode_head\.bottleneck", "aspp.project"),
    *mmseg_block(r"decode_head\.c1_bottleneck", "low_level"),
    *mmseg_separable(r"decode_head\.sep_bottleneck\.0", "classifier", 0),
    *mmseg_separable(r"decode_head\.sep_bottleneck\.1", "classifier", 6),
    (r"^decode_head\.conv_seg\.", "classifier.12."),
)
SMP_PLUS: Rules = (
    (r"^encoder\.", "backbone."),
    (r"^decoder\.aspp\.0\.convs\.([123])\.0\.", r"aspp.convs.\1."),
    (r"^decoder\.aspp\.0\.convs\.([123])\.1\.", r"aspp.convs.\1.2."),
    (r"^decoder\.aspp\.0\.", "aspp."),
    (r"^decoder\.aspp\.1\.", "post."),
    (r"^decoder\.aspp\.2\.", "post.2."),
    (r"^decoder\.block1\.", "low_level."),
    (r"^decoder\.block2\.0\.", "classifier."),
    (r"^decoder\.block2\.1\.", "classifier.2."),
    (r"^segmentation_head\.0\.", "classifier.4."),
)


def low_level_first(weights: Weights, depthwise: tuple[str, ...], dense: str) -> None:
    """Their decoder concatenates ASPP first, this one the features at stride 4.

    depthwise: layers that see each channel alone; dense: the convolution of all channels after it.
    """
    low_level, key = len(weights["low_level.0.weight"]), f"{dense}.weight"
    weights[key] = weights[key].roll(low_level, 1)
    for key, value in weights.items():
        if key.startswith(depthwise) and value.ndim:
            weights[key] = value.roll(low_level, 0)


def adapt_mmseg_plus(weights: Weights, network: dict[str, Any]) -> None:
    network["low_level_channels"] = len(weights["low_level.0.weight"])
    network["head_channels"] = pooling_last(weights, "aspp.project")
    low_level_first(weights, ("classifier.0.", "classifier.1."), "classifier.3")
    adapt_mmseg(weights, network)


def adapt_smp_plus(weights: Weights, network: dict[str, Any]) -> None:
    low_level_first(weights, ("classifier.0.",), "classifier.1")


SOURCES = (
    Source(
        "VainF", "classifier.project.0.weight", VAINF, "deeplabv3plus", "classifier.3",
        network={"output_stride": 16},
    ),
    Source(
        "mmsegmentation", "decode_head.c1_bottleneck.conv.weight", MMSEG_PLUS, "deeplabv3plus",
        "classifier.12", needed=("aspp.project.0.weight", "classifier.3.weight"),
        network={"separable": True, "project_kernel": 3, "decoder_convs": 2},
        adapt=adapt_mmseg_plus,
    ),
    Source(
        "segmentation_models_pytorch", "decoder.block1.0.weight", SMP_PLUS, "deeplabv3plus",
        "classifier.4", needed=("classifier.1.weight",),
        network={
            "output_stride": 16, "separable": "bare", "post_conv": True, "contract": False,
            "atrous_rates": [12, 24, 36], "align_corners": True,
        },
        compat={"align_corners": True},
        adapt=adapt_smp_plus,
    ),
)  # fmt: skip
