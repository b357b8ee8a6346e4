"""Train this DeepLabV3 and segmentation_models_pytorch's side by side; their curves must coincide.

    python benchmarks/bench_smp_training.py [DATASET] [STEPS]          e.g. camvid 50

Same weights, same batches, SGD 2e-4 with momentum 0.9, dropout off. Ours goes through this
project's criterion; SMP's through a textbook loop (model upsamples, F.cross_entropy). In float64
and with a small rate: at 1e-3 the drift of two trainings that differ by one rounding grows
fivefold per step, and in float32 SMP drifts by 2 % from itself when its weights change by 1e-7.
Prints the largest relative difference and draws both curves to docs/img/smp_training.png.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import segmentation_models_pytorch
import torch
from matplotlib.figure import Figure
from test_deeplabv3 import smp_model, smp_to_ours
from torch.nn import functional as F
from tqdm import trange

from datasets import build_dataset
from model import build_model
from model.losses import SegmentationLoss
from utils.errors import run_command
from utils.files import REPOSITORY, resolve_data_root
from utils.loader import Batches
from utils.transforms import normalize


def losses(dataset: str, steps: int) -> tuple[list[float], list[float]]:
    """Loss of SMP's and of this network at every step."""
    torch.manual_seed(0)
    rates = (6, 12, 18)
    reference = smp_model("resnet18", 16, rates=rates).double()
    model = build_model("deeplabv3", num_classes=19, output_stride=16, dropout=0.0).double()
    model.load_state_dict(smp_to_ours(reference.state_dict()))
    criterion, curves = SegmentationLoss(), ([], [])
    optimizers = [torch.optim.SGD(m.parameters(), 2e-4, momentum=0.9) for m in (reference, model)]
    batches = Batches(
        build_dataset(dataset, resolve_data_root(dataset, None), "train"),
        batch_size=8, crop=(48, 64), scale=(0.5, 2.0), flip=True, seed=0, workers=1,
        device=torch.device("cpu"),
    ).run(0, steps)  # fmt: skip
    for _ in trange(steps, unit="step"):
        batch = next(batches)
        images = normalize(batch.images).contiguous().double()
        theirs = F.cross_entropy(reference(images), batch.labels.long(), ignore_index=255)
        loss_sum, weight_sum = criterion(model(images), batch.labels)
        ours = loss_sum / weight_sum
        for loss, optimizer, curve in zip((theirs, ours), optimizers, curves, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
    return curves


def main() -> None:
    dataset = sys.argv[1] if len(sys.argv) > 1 else "synthetic"
    theirs, ours = losses(dataset, int(sys.argv[2]) if len(sys.argv) > 2 else 50)
    difference = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    peer = f"segmentation_models_pytorch {segmentation_models_pytorch.__version__}"
    print(f"{dataset}: {len(ours)} steps, loss {ours[0]:.3f} -> {ours[-1]:.3f}")
    print(f"largest relative difference to {peer}: {difference:.1e}")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(theirs, linewidth=5, alpha=0.4, label=peer)
    axis.plot(ours, linewidth=1.2, color="black", label="this project")
    axis.set(xlabel="step", ylabel="loss", title=f"DeepLabV3-ResNet18-OS16, {dataset}, 8 x 48x64")
    axis.legend()
    figure.savefig(REPOSITORY / "docs" / "img" / "smp_training.png", dpi=110)


if __name__ == "__main__":
    run_command(main)
