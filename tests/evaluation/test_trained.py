"""A checkpoint read for use: its network, also at another output stride."""

import pytest
import torch
from helpers import randomize
from torchvision.models.segmentation import deeplabv3_resnet50

from evaluation.trained import load_model
from model import build_model
from utils.base.errors import UserError
from utils.training.checkpoint import save_checkpoint


@pytest.mark.parametrize("change", [{"name": "later"}, {"later": 1}])
def test_a_network_of_newer_code_is_one_line(change, tmp_path):
    network = {"name": "deeplabv3", "num_classes": 2} | change
    state = {"step": 1, "network": network, "model": {}, "config": {}, "classes": []}
    path = save_checkpoint(tmp_path, state)
    with pytest.raises(UserError, match=r"its network is unknown here .*git pull"):
        load_model(path)


def test_a_network_trained_at_stride_16_predicts_at_8_as_torchvision_s(tmp_path):
    """torchvision's has stride 8 and rates 12, 24, 36: those of 16 doubled (section 4.1)."""
    network = {"name": "deeplabv3", "num_classes": 19, "backbone": "resnet50", "output_stride": 16}
    model = build_model(**network).eval()
    randomize(model)
    path = save_checkpoint(
        tmp_path,
        {"step": 1, "network": network, "model": model.state_dict(), "config": {}, "classes": []},
    )
    reference = deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=19, aux_loss=False
    ).eval()
    reference.load_state_dict(model.state_dict())
    finer = load_model(path, output_stride=8)[0]
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = reference.classifier(reference.backbone(images)["out"])
        logits = finer(images)["out"]
        assert logits.shape[2:] == (8, 12)
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
        coarse = load_model(path)[0](images)["out"]
    assert coarse.shape[2:] == (4, 6)
