"""Compare logits and time with two public implementations that are no packages, from clones.

    git clone https://github.com/hszhao/semseg
    git clone https://github.com/VainF/DeepLabV3Plus-Pytorch
    python benchmarks/bench_public.py --semseg semseg --vainf DeepLabV3Plus-Pytorch

semseg's PSPNet-50 and VainF's DeepLabV3+-ResNet50 get random weights; their state_dict is converted
as convert_checkpoint.py does. Both run on a CPU as their users run them, in float32 and NCHW; in
training, also in bfloat16, where the CPU multiplies it, with the malloc setting of our commands.
"""

import copy
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import measure
from benchmarks.bench_step import AMP, ON_CPU, cpu_sides, noise, our_side, with_memory
from model import build_model
from model.convert import convert
from model.normalize import normalize
from utils.base.errors import UserError, run_command
from utils.base.paths import REPOSITORY
from utils.data.batches import Batch

CLASHING = ("model", "utils", "datasets", "network", "visdom")


def load(folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    """Call `build` where the folder's modules stand for ours of the same name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not found. Clone the project, see bench_public.py --help")
    ours = {name: sys.modules.pop(name) for name in clashing()}
    sys.modules["visdom"] = SimpleNamespace(Visdom=None)  # VainF's utils import it
    paths, here = [*sys.path], str(REPOSITORY)
    sys.path[:] = [str(folder), *(path for path in paths if path != here)]
    try:
        return build()
    finally:
        sys.path[:] = paths
        for name in clashing():
            del sys.modules[name]
        sys.modules.update(ours)


def clashing() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in CLASHING]


def semseg() -> nn.Module:
    return import_module("model.pspnet").PSPNet(layers=50, classes=19, pretrained=False)


def vainf() -> nn.Module:
    build = import_module("network").modeling.deeplabv3plus_resnet50
    return build(num_classes=19, output_stride=16, pretrained_backbone=False)


def randomize(model: nn.Module) -> None:
    """Other statistics than 0 and 1, or a wrong order of channels would not show."""
    torch.manual_seed(0)
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            nn.init.normal_(value, 0, 0.1)
        elif key.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 1.5)


def semseg_step(model: nn.Module, batch: Batch, amp: bool) -> Callable:
    """semseg's network computes its loss and that of its auxiliary head itself."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images, labels = normalize(batch.images).contiguous(), batch.targets["label"].long()

    def step(_: int) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            _, loss, aux_loss = model(images, labels)
        (loss + 0.4 * aux_loss).backward()
        optimizer.step()

    return step


def difference(theirs: nn.Module, network: dict, weights: dict) -> float:
    """Largest difference of the logits in their standard deviation."""
    ours = build_model(**network).eval()
    ours.load_state_dict(weights)
    images = torch.randn(1, 3, 97, 161, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = theirs.eval()(images), ours(images)["out"]
        if logits.shape != expected.shape:  # semseg's are upsampled inside, as Compat does
            logits = F.interpolate(logits, expected.shape[2:], mode="bilinear")
    return float((logits - expected).abs().max() / expected.std())


def compare(name: str, theirs: nn.Module, rounds: int) -> list[dict]:
    randomize(theirs)
    found = convert(theirs.state_dict())
    apart = difference(theirs, found.network, found.weights)
    network = {key: value for key, value in found.network.items() if key != "compat"}
    own, rows = partial(build_model, **network), []
    for images, training in ((1, False), (2, True)):
        size = (257, 513)  # semseg needs multiples of 8, plus 1
        batch = noise(images, size)
        if training and name == "semseg":
            sides = {"ours": with_memory(True, our_side(own, batch, True))}
            sides[name] = with_memory(False, semseg_step(theirs, batch, amp=False))
            if AMP:
                fast = semseg_step(theirs, batch, amp=True)
                sides[f"{name} bf16, memory kept"] = with_memory(True, fast)
        else:
            sides = cpu_sides(own, {name: partial(copy.deepcopy, theirs)}, batch, training)
        seconds = measure.median_seconds(sides, rounds)
        rows.append(
            {
                "network": network["name"], "kind": "training step" if training else "prediction",
                "images": images, "size": list(size), "difference": apart,
                "sides": {
                    side: {"ms": 1e3 * value, "ours_is_faster": value / seconds["ours"]}
                    for side, value in seconds.items()
                },
            }
        )  # fmt: skip
    return rows


def main() -> None:
    given = measure.options(
        __doc__, semseg=Path("semseg"), vainf=Path("DeepLabV3Plus-Pytorch"), rounds=3,
        results=measure.RESULTS,
    )  # fmt: skip
    if not ON_CPU:
        raise UserError("bench_public.py: for a CPU. Hide the GPU: CUDA_VISIBLE_DEVICES=")
    measure.one_thread()
    rows = []
    for name, folder, build in (("semseg", given.semseg, semseg), ("VainF", given.vainf, vainf)):
        rows += compare(name, load(folder, build), given.rounds)
        measure.record(given.results, "public implementations", rows)


if __name__ == "__main__":
    run_command(main)
