"""Train SMP's networks on CamVid in a plain loop, as its users write it, and score them on test.

    python benchmarks/camvid_peer.py                  DeepLabV3, 15, 30 and 60 minutes of two cores
    python benchmarks/camvid_peer.py --networks DeepLabV3Plus FPN --steps 450 --seeds 0 1 2

ResNet-18 at stride 16 from random weights, in float32: crops of 256x320 with a random scale and
mirroring by torchvision, batches of 8 from torch's DataLoader, cross entropy, Adam with a cosine to
zero; on the GPU if there is one. Scored as our own trainings are; docs/recipes.md shows both.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import trange

from benchmarks import measure
from benchmarks.camvid_recipes import pflop
from datasets import SegmentationDataset, build_dataset
from evaluation.evaluate import evaluate
from utils.base.errors import UserError
from utils.base.paths import REPOSITORY, make_folder, write_json
from utils.training.distributed import World

CROP, BATCH, RATE = (256, 320), 8, 1e-3  # SMP needs multiples of 32
STEPS = (450, 900, 1800)  # 30 steps a minute


class Crops(torch.utils.data.Dataset):
    """Augmented training crops."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(CROP, scale=(0.25, 1.0), ratio=(1.2, 1.5)),
                v2.RandomHorizontalFlip(),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self.dataset[index]
        image = tv_tensors.Image(torch.from_numpy(sample["image"]).movedim(-1, 0))
        return self.transform(image, tv_tensors.Mask(torch.from_numpy(sample["label"])))


class AsOurs(nn.Module):
    """SMP's network as evaluate() calls networks: any size, padded to a multiple of 32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % 32, 0, -height % 32))
        return {"out": self.network(padded)[..., :height, :width]}


def train(smp_network: nn.Module, root: Path, steps: int, device: torch.device) -> None:
    crops = Crops(build_dataset("camvid", root, "train"))
    loader = DataLoader(crops, min(BATCH, len(crops)), shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(smp_network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    bar, done = trange(steps, unit="step"), 0
    while done < steps:
        for images, labels in loader:
            optimizer.zero_grad()
            logits, labels = smp_network(images.to(device)), labels.to(device).long()
            F.cross_entropy(logits, labels, ignore_index=255).backward()
            optimizer.step()
            schedule.step()
            bar.update()
            done += 1
            if done == steps:
                break


def main() -> None:
    given = measure.options(
        __doc__, seeds=(0,), networks=("DeepLabV3",), steps=STEPS,
        root=REPOSITORY / "data" / "camvid",
        results=measure.RESULTS,
    )  # fmt: skip
    path = given.results / "recipes" / "camvid.json"
    make_folder(path.parent)
    world = World(0, 1, measure.choose_device())
    for seed in given.seeds:
        for name in given.networks:
            for steps in given.steps:
                row = measured(name, seed, steps, given.root, world)
                rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
                write_json(path, [*rows, row])
                miou = 100 * row["test"]["miou"]
                print(f"{row['variant']}, seed {seed}: test mIoU {miou:.1f} -> {path}")


def build(name: str) -> nn.Module:
    """SMP's network of this name with ResNet-18, at stride 16 where it has one."""
    try:
        import segmentation_models_pytorch as smp
    except ModuleNotFoundError:
        what = "segmentation-models-pytorch is missing. Run: make bench"
        raise UserError(f"camvid_peer.py: {what}") from None
    options = {"encoder_weights": None, "classes": 11}
    if name != "FPN":
        options |= {"encoder_output_stride": 16, "decoder_atrous_rates": (6, 12, 18)}
    return getattr(smp, name)("resnet18", **options)


def measured(name: str, seed: int, steps: int, root: Path, world: World) -> dict:
    """Train and score one network; the row for camvid.json."""
    torch.manual_seed(seed)
    network = build(name).to(world.device)
    begin = time.perf_counter()
    train(network, root, steps, world.device)
    seconds = time.perf_counter() - begin
    model, dataset = AsOurs(network).eval(), build_dataset("camvid", root, "test")
    scores = evaluate(model, dataset, world=world).plain()
    return {
        "variant": f"SMP's {name}, {steps} steps", "seed": seed, "options": {},
        "group": "peer" if name == "DeepLabV3" else "family",
        "steps": steps, "parameters": sum(x.numel() for x in network.parameters()),
        "pflop": pflop(steps, BATCH, CROP, model), "seconds": seconds,
        "test": scores, "machine": measure.machine(world.device),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "smp": version("segmentation-models-pytorch"), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


if __name__ == "__main__":
    main()  # not run_command, which sets malloc: the peer keeps glibc's own settings
