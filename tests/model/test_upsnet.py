"""UPSNet: its layers, its losses, and what it learns from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fails, randomize, run, tiny
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from model import build_model
from model.losses import UPSNetLoss
from model.normalize import FromPixels
from model.panoptic.joining import join, paste
from model.panoptic.mask_rcnn import at_corners
from model.panoptic.upsnet import DeformConv2d
from utils.base.errors import UserError
from utils.data.coco_panoptic import CLASSES as COCO
from utils.data.label_table import CITYSCAPES
from utils.training.network import network_options, take_over

K, THINGS = 19, [*range(11, 19)]


def network(**options):
    options = {"backbone": "resnet18", "things": THINGS, "num_classes": K} | options
    return build_model("upsnet", **options)


def targets(size=(96, 128), *, count: int = 2) -> dict[str, torch.Tensor]:
    """Crops; the last one has no instance."""
    label = torch.zeros(count, *size, dtype=torch.uint8)
    thing = torch.zeros(count, *size, dtype=torch.int16)
    for number in range(count - 1):
        label[number, 10:60, 20:80], thing[number, 10:60, 20:80] = 13, 1
        label[number, 50:90, 70:120], thing[number, 50:90, 70:120] = 11, 2
        label[number, 0, 0], thing[number, 0, 0] = 18, 3  # one pixel
        label[number, :8, 60:], label[number, 80:, :40] = 12, 255  # a group, and void
    return {"label": label, "thing": thing}


def test_its_parameters_follow_from_the_layers():
    """Mask R-CNN's, without its own classes, and the semantic head."""
    with torch.device("meta"):
        count = sum(p.numel() for p in network(backbone="resnet50").parameters())
        peer = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=9)
    theirs = sum(p.numel() for p in peer.parameters())
    deformable = 256 * 128 * 9 + 128 + 256 * 18 * 9 + 18 + 128 * 128 * 9 + 128 + 128 * 18 * 9 + 18
    assert count == theirs + deformable + 512 * K + K == 44_527_804


@pytest.mark.parametrize("count", [1, 2])
def test_every_parameter_learns_also_without_an_instance(count):
    torch.manual_seed(0)
    model, known = network(roi_loss=True, semantic_layers=3), targets(count=count)
    outputs = model(torch.randn(count, 3, 96, 128), known)
    loss_sum, weight = UPSNetLoss()(outputs, known)
    loss_sum.backward()
    assert weight == count * 96 * 128 and loss_sum.isfinite()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    if count > 1:
        dead = {n for n, p in model.named_parameters() if not p.grad.any()}
        assert dead == set()


def test_targets_are_boxes_masks_and_classes_of_the_instances():
    known = targets()
    found = network().instances(known["thing"][0], known["label"][0])
    assert found["boxes"].tolist() == [[20, 10, 80, 60], [70, 50, 120, 90], [0, 0, 1, 1]]
    assert found["labels"].tolist() == [3, 1, 8]
    assert torch.equal(found["masks"][1] > 0, known["thing"][0] == 2)
    assert len(network().instances(known["thing"][1], known["label"][1])["boxes"]) == 0


def test_masks_are_learned_where_they_are_pasted():
    y, x = np.ogrid[:64, :64]
    disc = torch.from_numpy((y - 30.5) ** 2 + (x - 27.5) ** 2 < 12**2)[None].byte()
    boxes = torch.tensor([[16.0, 19, 40, 43]])
    learned = project_masks_on_boxes(at_corners(disc), boxes, torch.tensor([0]), 28)
    pasted = paste(learned - 0.5, boxes, *2 * [torch.arange(64) + 0.5]) > 0
    assert (pasted & (disc > 0)).sum() >= 0.99 * (pasted | (disc > 0)).sum()


def test_the_panoptic_loss_is_that_of_the_joined_logits():
    """Cross entropy over stuff, kept instances and unknown; the targets by a loop over pixels."""
    torch.manual_seed(0)
    model, known = network(), targets(count=2)
    label, thing = known["label"][0], known["thing"][0]
    pyramid = {str(n): torch.randn(1, 256, 24 >> n, 32 >> n) for n in range(4)}
    logits, true = torch.randn(1, K, 24, 32), model.instances(thing, label)
    torch.manual_seed(0)
    keep = torch.rand(3) < 0.7
    assert keep.tolist() == [True, False, True]
    boxes, labels = true["boxes"][keep], true["labels"][keep]
    features = model.heads.mask_roi_pool(pyramid, [boxes], [(96, 128)])
    masks = model.heads.mask_predictor(model.heads.mask_head(features))
    masks = masks[[0, 1], labels]
    classes = torch.tensor(THINGS)[labels - 1]
    is_thing = torch.tensor([number in THINGS for number in range(K)])
    joined = join(logits[0], boxes / 4, classes, masks, is_thing)
    losses = []
    for y, x in np.ndindex(24, 32):
        at, number = label[4 * y + 2, 4 * x + 2].item(), thing[4 * y + 2, 4 * x + 2].item()
        if number:
            channel = {1: 11, 2: 13, 3: 12}[number]
        elif at in THINGS or at == 255:
            continue
        else:
            channel = at
        losses.append(-joined[:, y, x].log_softmax(0)[channel])
    torch.manual_seed(0)
    found = model.panoptic_loss(pyramid, logits, label[None], thing[None], [true])
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_deformable_convolutions_begin_as_usual_ones():
    how = {"backbone": "resnet50", "norm": "bn"}
    plain, deformable = (network(deformable=x, **how).backbone.eval() for x in (False, True))
    assert sum(isinstance(x, DeformConv2d) for x in deformable.modules()) == 13
    randomize(plain)
    missing = deformable.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert all(".offset." in name for name in missing)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        pairs = [*zip(plain(images), deformable(images), strict=True)]
        for one, other in pairs:
            assert (one - other).abs().max() <= 1e-4 * one.std()
        deformable.layer3[0].conv2.offset.bias.fill_(0.5)
        assert (deformable(images)[-1] - pairs[-1][0]).abs().max() > 1e-3 * pairs[-1][0].std()
    with pytest.raises(ValueError, match="needs a ResNet, and norm"):
        network(deformable=True, backbone="efficientnet_b0")


@pytest.mark.parametrize("size", [(96, 128), (101, 135)])
def test_predictions_of_any_size_lie_within_the_image(size):
    torch.manual_seed(0)
    model = network().eval()
    randomize(model)
    with torch.inference_mode():
        outputs = model(torch.randn(2, 3, *size))
    assert outputs["out"].shape == (2, K, -(-size[0] // 4), -(-size[1] // 4))
    assert len(outputs["detections"]) == 2
    for found in outputs["detections"]:
        assert len(found["boxes"]) == len(found["masks"]) <= 100
        assert (found["boxes"] >= 0).all() and (found["boxes"] <= 1).all()
        assert (found["scores"].diff() <= 0).all()
        assert torch.isin(found["classes"], torch.tensor(THINGS)).all()
    assert outputs["is_thing"].nonzero()[:, 0].tolist() == THINGS


def test_the_step_gives_the_network_its_targets():
    torch.manual_seed(0)
    known = targets()
    pixels = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8)
    outputs = FromPixels(network())(pixels, None, known)
    assert {"out", "instances", "panoptic"} == {*outputs}


def test_classes_of_coco_begin_those_of_cityscapes(tmp_path):
    """Rows of the same or the nearest class in each head; the others keep their random weights."""
    torch.manual_seed(0)
    names, things = COCO.names, COCO.is_thing.nonzero()[0].tolist()
    coco, city = network(num_classes=133, things=things), network()
    own = {name: x.clone() for name, x in city.state_dict().items()}
    content = {"format": 1, "model": coco.state_dict(), "classes": [*names]}
    torch.save(content | {"network": {"things": things}}, tmp_path / "coco.pth")
    options = {"name": "upsnet", "num_classes": K, "things": THINGS, "backbone": "resnet18"}
    what = take_over(city, tmp_path / "coco.pth", options, CITYSCAPES.names)
    assert what == "random: class pole, class traffic sign"
    new, old = city.state_dict(), coco.state_dict()
    pairs = {"road": "road", "fence": "fence-merged", "rider": "person", "car": "car"}
    for here, there in pairs.items():
        row, source = CITYSCAPES.names.index(here), names.index(there)
        assert torch.equal(new["classifier.weight"][row], old["classifier.weight"][source])
        if row in THINGS:
            row, source = THINGS.index(row) + 1, things.index(source) + 1
            for part in ("box_predictor.cls_score.bias", "mask_predictor.mask_fcn_logits.weight"):
                assert torch.equal(new[f"heads.{part}"][row], old[f"heads.{part}"][source])
            boxes = "heads.box_predictor.bbox_pred.weight"
            rows, sources = (slice(4 * x, 4 * x + 4) for x in (row, source))
            assert torch.equal(new[boxes][rows], old[boxes][sources])
    pole = CITYSCAPES.names.index("pole")
    assert torch.equal(new["classifier.weight"][pole], own["classifier.weight"][pole])
    scores = "heads.box_predictor.cls_score.weight"
    assert torch.equal(new[scores][0], old[scores][0])  # background
    assert torch.equal(new["backbone.conv1.weight"], old["backbone.conv1.weight"])


def test_what_its_changing_shapes_do_not_allow_is_one_line():
    for option in ("compile", "find_batch_size"):
        config = tiny(Path("data"), Path("logs"), model="upsnet", output_stride=8, **{option: True})
        with pytest.raises(UserError, match=f"--{option} true: not for upsnet"):
            network_options(config, K, THINGS)


def test_deformable_convolutions_without_a_resnet_are_one_line(cityscapes_root, tmp_path):
    options = ["--model", "upsnet", "--backbone", "efficientnet_b0", "--deformable", "true"]
    options += ["--backbone_weights", "null", "--data_root", cityscapes_root, "--device", "cpu"]
    done = run("train.py", *options, "--log_root", tmp_path, "--crop", "[64,128]", "--steps", "1")
    fails(done, "--model upsnet: deformable true needs a ResNet", "Change one of them")
