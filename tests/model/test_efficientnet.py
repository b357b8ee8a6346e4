"""EfficientNet-B0 as the encoder of FPN."""

import pytest
import torch
import torchvision
from helpers import randomize

from model import build_model
from model.encoders import build_encoder
from utils.base.errors import UserError
from utils.training.config import Config
from utils.training.network import network_options


@torch.no_grad()
def test_features_are_torchvision_s_at_strides_4_to_32():
    theirs = torchvision.models.efficientnet_b0(weights=None).eval()
    randomize(theirs)
    ours = build_encoder("efficientnet_b0", weights=theirs.state_dict()).eval()
    images = torch.randn(1, 3, 64, 97, generator=torch.Generator().manual_seed(1))
    for features, stride in zip(ours(images), (4, 8, 16, 32), strict=True):
        sizes = [-(-side // stride) for side in images.shape[2:]]
        x = images
        for part in theirs.features:  # the last output of this size
            x = part(x)
            if [*x.shape[2:]] == sizes and x.shape[1] != 1280:
                expected = x
        assert torch.equal(features, expected)


def test_fpn_takes_it_and_others_refuse_it():
    with torch.device("meta"):
        model = build_model("fpn", num_classes=19, backbone="efficientnet_b0")
    # Encoder 3,595,388; lateral (24 + 40 + 112 + 320) x 256 + 4 x 256 biases; the rest as always.
    rest = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("le", "cl")))
    assert sum(p.numel() for p in model.parameters()) == 3_595_388 + 496 * 256 + 1024 + rest
    words = "--backbone efficientnet_b0: not an encoder of deeplabv3"
    with pytest.raises(UserError, match=words):
        network_options(Config(backbone="efficientnet_b0"), 19)
    with pytest.raises(ValueError, match="efficientnet_b0 has no output stride but 32, got 8"):
        build_encoder("efficientnet_b0", output_stride=8)
