"""UPSNet (Xiong et al., arXiv 1901.03784): Mask R-CNN and a semantic head on one feature pyramid,
and a head without parameters that joins both."""

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from model.efficientnet import EFFICIENTNETS
from model.encoders import build_encoder
from model.layers import Norm
from model.ops.deform_conv import deform_conv
from model.panoptic import mask_rcnn
from model.panoptic.joining import join
from model.resnet import RESNETS

STRIDE = mask_rcnn.STRIDES[0]  # of the semantic logits
LAST_STRIDE = 2 * mask_rcnn.STRIDES[-1]  # images are padded to a multiple, as anchors need
WIDTH = 128  # channels of the semantic head, per level
KEPT = 0.7  # share of the true instances that the panoptic head sees; the others are "unknown"
CELLS = 28  # side of the RoI loss's grid
NO_CLASS = -100  # ignored by cross_entropy


class DeformConv2d(nn.Conv2d):
    """Deformable convolution (Dai et al., arXiv 1703.06211); without offsets, as at the start, a
    usual one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, **options: object) -> None:
        super().__init__(inputs, outputs, kernel, **options)
        how = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        self.offset = nn.Conv2d(inputs, 2 * kernel**2, kernel, **how)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,C,H,W) -> (N,C',H',W')."""
        names = ("stride", "padding", "dilation")
        how = {name: getattr(self, name)[0] for name in names}
        return deform_conv(x, self.offset(x), self.weight, self.bias, **how)


class UPSNet(nn.Module):
    """Encoder -> feature pyramid -> boxes with masks, and classes of all pixels (figure 1)."""

    task = "panoptic_boxes"
    encoders = (*RESNETS, *EFFICIENTNETS)
    dynamic = True  # shapes depend on the data: neither compiled nor in a CUDA graph
    full_precision = ("proposals", "heads")  # half precision cannot hold coordinates

    def __init__(
        self,
        *,
        num_classes: int,
        things: Sequence[int] = (),
        backbone: str = "resnet50",
        norm: Norm = "bn",
        deformable: bool = False,
        semantic_layers: int = 2,
        roi_loss: bool = False,
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """things: train ids of the classes with instances. norm: of the backbone; no other has one.
        deformable: the 3x3 convolutions of a ResNet's last three stages. semantic_layers: 2 for
        Cityscapes, 3 for COCO. roi_loss: see losses(). Checkpoints store all options."""
        super().__init__()
        self.backbone = build_encoder(
            backbone, output_stride=32, norm=norm, weights=backbone_weights
        )
        if deformable:
            deform(self.backbone, norm)
        self.pyramid = mask_rcnn.feature_pyramid(self.backbone.channels)
        self.proposals = mask_rcnn.proposal_network()
        self.heads = mask_rcnn.roi_heads(len(things))
        widths = [mask_rcnn.CHANNELS] * (semantic_layers - 1) + [WIDTH] * 2
        layers = ((DeformConv2d(*x, 3, padding=1), nn.ReLU(True)) for x in pairwise(widths))
        self.semantic = nn.Sequential(*chain.from_iterable(layers))
        for conv in self.semantic[::2]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        self.classifier = nn.Conv2d(4 * WIDTH, num_classes, 1)
        self.roi_loss = roi_loss
        self.thing_ids = [*things]

    def forward(
        self, images: torch.Tensor, targets: Mapping[str, torch.Tensor] | None = None
    ) -> dict:
        """(N,3,H,W) normalized -> {"out": (N,K,H/4,W/4) logits, and
        training, with the planes "label" and "thing" of N crops as targets: losses(...)
        evaluation: "detections": of each image, best first, {"boxes": (n,4) left, top, right,
        bottom as shares of the image, "classes": (n,) train ids, "scores": (n,), "masks":
        (n,28,28) logits within the boxes}, and "is_thing": (K,) bool}."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % LAST_STRIDE, 0, -height % LAST_STRIDE))
        stages = {str(n): x for n, x in enumerate(self.backbone(padded))}
        pyramid = self.pyramid(stages)
        levels = [self.semantic(pyramid[name]) for name in stages]
        size = levels[0].shape[-2:]
        levels[1:] = (F.interpolate(x, size, mode="bilinear") for x in levels[1:])
        fused = torch.cat(levels, 1)
        logits = self.classifier(fused)[..., : -(-height // STRIDE), : -(-width // STRIDE)]
        with torch.autocast(images.device.type, enabled=False):
            pyramid = {name: x.float() for name, x in pyramid.items()}
            listed = SimpleNamespace(tensors=padded, image_sizes=[(height, width)] * len(images))
            if self.training:
                return {"out": logits, **self.losses(pyramid, fused, logits, listed, targets)}
            detections = self.detect(pyramid, listed)
            return {"out": logits, "detections": detections, "is_thing": self.is_thing()}

    def detect(
        self, pyramid: dict[str, torch.Tensor], images: SimpleNamespace
    ) -> list[dict[str, torch.Tensor]]:
        boxes, _ = self.proposals(images, pyramid)
        found, _ = self.heads(pyramid, boxes, images.image_sizes)
        size = boxes[0].new_tensor([*images.image_sizes[0][::-1]] * 2)
        return [
            {
                "boxes": x["boxes"] / size,
                "classes": self.things[x["labels"] - 1],
                "scores": x["scores"],
                "masks": x["masks"][:, 0].logit(1e-6),
            }
            for x in found
        ]

    def losses(
        self,
        pyramid: dict[str, torch.Tensor],
        fused: torch.Tensor,
        logits: torch.Tensor,
        images: SimpleNamespace,
        targets: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Means over the batch: "instances", the five losses of Mask R-CNN; "panoptic", cross
        entropy of the joined logits at stride 4, with the true boxes of most instances; with
        roi_loss "roi", cross entropy of the classes within the true boxes (section 3.2)."""
        labels, numbers = targets["label"], targets["thing"]
        true = [self.instances(*x) for x in zip(numbers, labels, strict=True)]
        boxes, losses = self.proposals(images, pyramid, true)
        shifted = [x | {"masks": mask_rcnn.at_corners(x["masks"])} for x in true]
        losses |= self.heads(pyramid, boxes, images.image_sizes, shifted)[1]
        found = {"instances": sum(losses.values())}
        found["panoptic"] = self.panoptic_loss(pyramid, logits.float(), labels, numbers, true)
        if self.roi_loss:
            found["roi"] = self.roi_cross_entropy(fused, labels, true)
        return found

    @staticmethod
    def thing_rows(name: str, things: list[str]) -> list[str]:
        """What the rows of a tensor of the state_dict stand for, several in turn for each; [] for
        tensors without a row per thing."""
        parts = ("cls_score", "bbox_pred", "mask_fcn_logits")
        heads = name.startswith("heads.") and name.split(".")[-2] in parts
        return ["background", *things] if heads else []

    @property
    def things(self) -> torch.Tensor:
        return torch.tensor(self.thing_ids, dtype=torch.int64, device=self.classifier.weight.device)

    def is_thing(self) -> torch.Tensor:
        """(K,) bool."""
        classes = torch.arange(self.classifier.out_channels, device=self.things.device)
        return torch.isin(classes, self.things)

    def instances(self, numbers: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """(H,W) number of the instance at each pixel, 0 for none, and train ids -> "boxes",
        "masks", "labels": places in `things`, from 1."""
        from torchvision.ops import masks_to_boxes  # takes seconds

        every = torch.arange(1, int(numbers.max()) + 1, device=numbers.device)
        masks = numbers == every[:, None, None]
        boxes = masks_to_boxes(masks)
        boxes[:, 2:] += 1  # right and bottom are outside
        first = masks.flatten(1).byte().argmax(1) if len(every) else every
        places = (labels.flatten()[first].long()[:, None] == self.things).byte().argmax(1)
        return {"boxes": boxes, "masks": masks.byte(), "labels": places + 1}

    def panoptic_loss(
        self,
        pyramid: dict[str, torch.Tensor],
        logits: torch.Tensor,
        labels: torch.Tensor,
        numbers: torch.Tensor,
        true: list[dict[str, torch.Tensor]],
    ) -> torch.Tensor:
        """Mean over the images; logits (N,K,h,w), labels and numbers of instances (N,H,W)."""
        kept = [torch.rand(len(x["boxes"]), device=logits.device) < KEPT for x in true]
        boxes = [x["boxes"][keep] for x, keep in zip(true, kept, strict=True)]
        places = [x["labels"][keep] for x, keep in zip(true, kept, strict=True)]
        features = self.heads.mask_roi_pool(pyramid, boxes, [labels.shape[-2:]] * len(boxes))
        masks = self.heads.mask_predictor(self.heads.mask_head(features))
        each = torch.arange(len(masks), device=masks.device)
        masks = masks[each, torch.cat(places)].split([len(x) for x in boxes])

        is_thing = self.is_thing()
        stuff = torch.where(is_thing, NO_CLASS, (~is_thing).cumsum(0) - 1)
        stuff = F.pad(stuff, (0, 256 - len(stuff)), value=NO_CLASS)
        first = len(is_thing) - len(self.thing_ids)  # channel of an instance
        total = logits.sum() * 0 + masks[0].sum() * 0
        for number, keep in enumerate(kept):
            joined = join(
                logits[number],
                boxes[number],
                self.things[places[number] - 1],
                masks[number],
                is_thing,
                scale=(STRIDE, STRIDE),
            )
            # Of each instance its channel, the last one if it was left out; 0 is no instance.
            channel = torch.where(keep, first - 1 + keep.cumsum(0), len(joined) - 1)
            channel = F.pad(channel, (1, 0), value=NO_CLASS)
            planes = torch.stack([labels[number].float(), numbers[number].float()])
            planes = F.interpolate(planes[None], joined.shape[-2:], mode="nearest-exact")
            label, instance = planes[0].long()
            target = torch.where(instance > 0, channel[instance], stuff[label])
            loss = F.cross_entropy(joined[None], target[None], reduction="sum")
            total = total + loss / (target != NO_CLASS).sum().clamp_min(1)
        return total / len(kept)

    def roi_cross_entropy(
        self, fused: torch.Tensor, labels: torch.Tensor, true: list[dict[str, torch.Tensor]]
    ) -> torch.Tensor:
        """Mean over the labelled cells of a grid in each true box."""
        from torchvision.ops import roi_align

        boxes = [x["boxes"] for x in true]
        logits = self.classifier(roi_align(fused.float(), boxes, CELLS, 1 / STRIDE, aligned=True))
        cells = (torch.arange(CELLS, device=fused.device) + 0.5) / CELLS
        parts = [labels.new_empty(0, CELLS, CELLS)]
        for label, (left, top, right, bottom) in (
            (label, box) for label, own in zip(labels, boxes, strict=True) for box in own
        ):
            rows, columns = (top + (bottom - top) * cells, left + (right - left) * cells)
            parts.append(label[rows.long()[:, None], columns.long()][None])
        truth = torch.cat(parts).long()
        loss = F.cross_entropy(logits, truth, ignore_index=255, reduction="sum")
        return loss / (truth != 255).sum().clamp_min(1)


def deform(resnet: nn.Module, norm: Norm) -> None:
    """Make the 3x3 convolutions of the last three stages deformable, in place; ValueError for other
    encoders and for Weight Standardization."""
    if not hasattr(resnet, "stages") or norm == "gn_ws":
        raise ValueError("deformable true needs a ResNet, and norm bn or gn")
    for block in (block for stage in resnet.stages[1:] for block in stage):
        for name, conv in block.named_children():
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                how = {"stride": conv.stride, "padding": conv.padding, "bias": False}
                other = DeformConv2d(conv.in_channels, conv.out_channels, 3, **how)
                other.weight = conv.weight
                setattr(block, name, other)
