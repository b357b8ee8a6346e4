"""The parts of Mask R-CNN (He et al., arXiv 1703.06870) on a feature pyramid, from torchvision."""

import torch
from torch import nn
from torch.nn import functional as F

STRIDES = (4, 8, 16, 32)  # of the pyramid, without "pool"
CHANNELS = 256  # of the pyramid
DETECTIONS = 100  # per image, at most
PROPOSALS = {"training": 2000, "testing": 1000}  # per level before and per image after suppression


def feature_pyramid(channels: list[int]) -> nn.Module:
    """Channels of the encoder's stages -> module: {"0": (N,C,H/4,W/4), ...} -> the same keys with
    CHANNELS each, and "pool" at twice the last stride."""
    from torchvision.ops import feature_pyramid_network as fpn  # takes seconds, as below

    last = fpn.LastLevelMaxPool()
    return fpn.FeaturePyramidNetwork([*channels], CHANNELS, extra_blocks=last)


def proposal_network() -> nn.Module:
    """Anchors of 8 times the stride, three shapes each; 256 of them are trained per image."""
    from torchvision.models.detection import anchor_utils, rpn

    sizes = tuple((8 * stride,) for stride in (*STRIDES, 2 * STRIDES[-1]))
    with torch.device("cpu"):  # no weights, so no checkpoint fills them in
        anchors = anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return rpn.RegionProposalNetwork(
        anchors,
        rpn.RPNHead(CHANNELS, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=PROPOSALS,
        post_nms_top_n=PROPOSALS,
        nms_thresh=0.7,
    )


def roi_heads(things: int) -> nn.Module:
    """Heads of boxes, classes (0 is background) and masks; 512 boxes are trained per image."""
    from torchvision.models.detection import faster_rcnn, mask_rcnn
    from torchvision.models.detection.roi_heads import RoIHeads

    return RoIHeads(
        roi_align(7),
        faster_rcnn.TwoMLPHead(CHANNELS * 7**2, 1024),
        faster_rcnn.FastRCNNPredictor(1024, things + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=512,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=DETECTIONS,
        mask_roi_pool=roi_align(14),
        mask_head=mask_rcnn.MaskRCNNHeads(CHANNELS, (256,) * 4, 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(256, 256, things + 1),
    )


def at_corners(masks: torch.Tensor) -> torch.Tensor:
    """(n,H,W) uint8 -> (n,H,W) float32 for roi_heads in training, which take pixel k to lie at k,
    not at k + 0.5: means of the pixels around each upper left corner."""
    padded = F.pad(masks.float()[:, None], (1, 0, 1, 0), mode="replicate")
    return F.avg_pool2d(padded, 2, 1)[:, 0]


def roi_align(cells: int) -> nn.Module:
    """Features of a box as a grid, from the level that fits its size."""
    from torchvision.ops import poolers

    pool = poolers.MultiScaleRoIAlign([str(n) for n in range(len(STRIDES))], cells, 2)
    # Else it would guess the strides from the first image, for ever.
    pool.scales = [1 / stride for stride in STRIDES]
    pool.map_levels = poolers.initLevelMapper(2, 5)
    return pool
