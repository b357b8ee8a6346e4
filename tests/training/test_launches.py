"""What a training step asks of a GPU, counted without one: launches, waits, graphs.

Tensors on PyTorch's "meta" device take the same path through our code as those of a GPU, hold no
values and fail where the host asks for one. docs/results.md quotes these numbers.
"""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from helpers import REPOSITORY, randomize
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from evaluation.inference import Predictor
from evaluation.task import TASKS
from model import build_model
from model.losses import SegmentationLoss
from model.normalize import FromPixels
from model.ops import bilinear
from utils.data.batches import Batch, empty_targets
from utils.training.optim import AveragedWeights, build_optimizer
from utils.training.step import training_step

RESULTS = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
NO_KERNEL |= {"_unsafe_view", "_reshape_alias", "promote_types"}


class Launches(TorchDispatchMode):
    """Counts kernels, and the copies between two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter = Counter()
        self.crossing: list[str] = []

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        if not function.is_view and name not in NO_KERNEL:
            self.kernels[name] += 1
        tensors = [x for x in (*args, out) if isinstance(x, torch.Tensor)]
        if name in ("_to_copy", "copy_") and len({x.device for x in tensors}) > 1:
            self.crossing.append(name)
        return out


@pytest.fixture
def meta(monkeypatch):
    """Autocast, which has no "meta", left out."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    bilinear.cut.cache_clear()
    with torch.device("meta"):
        yield
    bilinear.cut.cache_clear()


def batch(count=8, size=(512, 1024), planes=("label",), **options) -> Batch:
    images = torch.zeros(count, *size, 3, dtype=torch.uint8, **options)
    targets = empty_targets((count, *size), planes, **options)
    targets = {plane: torch.zeros_like(x) for plane, x in targets.items()}
    return Batch(images, targets, [], torch.zeros(count, 3, 4, **options))


@pytest.mark.parametrize(
    "options, what", [({}, "loss"), ({"hard_threshold": 0.7}, "loss with hard pixels")]
)
def test_launches_of_the_loss(options, what, meta):
    criterion = SegmentationLoss(class_weights=torch.ones(19), **options)
    logits = torch.zeros(8, 19, 64, 128, dtype=torch.bfloat16)
    logits = logits.to(memory_format=torch.channels_last).requires_grad_()
    for _ in range(2):  # the first one also makes the matrices
        with Launches() as launches:
            criterion({"out": logits}, batch().targets)[0].backward()
    count = launches.kernels.total()
    assert count <= 80 and not launches.crossing
    assert f"| {what}, forward and backward | {count} |" in RESULTS, count


@pytest.mark.parametrize("name", ["deeplabv3", "panoptic_deeplab"])
def test_a_whole_step_neither_waits_for_the_device_nor_copies(name, meta):
    """Colours, hard pixels, clipping, two micro-batches, average: .item() would raise here."""
    model = build_model(name, num_classes=19)
    task = TASKS[model.task]
    model = model.to(memory_format=torch.channels_last)
    trained, average = FromPixels(model), AveragedWeights(model, 0.99)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, foreach=True)
    criterion = task.criterion(**({"hard_threshold": 0.7} if name == "deeplabv3" else {}))
    for step in (1, 2):
        with Launches() as launches:
            batches = [batch(planes=criterion.planes)] * 2
            training_step(trained, criterion, optimizer, batches, clip=10.0)
            average.update(step)
    waiting = launches.kernels.keys() & {"_local_scalar_dense", "nonzero", "masked_select"}
    figures = f"| values that the host reads, copies between devices | {len(waiting)}, "
    assert f"{figures}{len(launches.crossing)} |" in RESULTS
    assert not waiting and not launches.crossing


def test_one_graph_that_is_never_cut_or_compiled_again(cityscapes_root):
    """Colours and normalisation in it; training, evaluation of two sizes, training."""
    model = build_model("deeplabv3", num_classes=19, output_stride=32)
    model = model.to(memory_format=torch.channels_last)
    torch._dynamo.reset()
    counter, trained = CompileCounterWithBackend("eager"), FromPixels(model)
    trained.compile(backend=counter)
    optimizer = build_optimizer(model, "sgd", base_lr=0.01, weight_decay=0.0)
    torch._dynamo.utils.counters.clear()
    for size in ((32, 64), (48, 32)):
        for _ in range(2):
            batches = [batch(2, (32, 64))] * 2
            training_step(trained, SegmentationLoss(), optimizer, batches, amp=torch.bfloat16)
        image = torch.zeros(*size, 3, dtype=torch.uint8).numpy()
        Predictor(model, device=torch.device("cpu")).train_ids(image)
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    calls = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes}
    assert any("baddbmm" in call for call in calls), "the colours are in the graph"
    figures = f"| graphs, graph breaks | {counter.frame_count}, {breaks} |"
    assert figures in RESULTS and (counter.frame_count, breaks) == (1, 0)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_the_loss_never_takes_tf32(precision):
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
            if function._schema.name in ("aten::mm", "aten::bmm"):
                seen.add(torch.backends.cuda.matmul.fp32_precision)
            return function(*args, **(kwargs or {}))

    torch.set_float32_matmul_precision(precision)
    try:
        before = torch.backends.cuda.matmul.fp32_precision
        logits = torch.zeros(2, 19, 4, 8, requires_grad=True)
        with Watch():
            SegmentationLoss(hard_threshold=0.5)({"out": logits}, batch(2, (32, 64)).targets)
        assert torch.backends.cuda.matmul.fp32_precision == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == {"ieee"}


def test_cudnn_searches_only_for_the_size_of_the_first_image():
    model = build_model("deeplabv3", num_classes=5, output_stride=32)
    randomize(model)
    predictor, found = Predictor(model, device=torch.device("cpu")), []
    predictor.model.register_forward_pre_hook(
        lambda *_: found.append(torch.backends.cudnn.benchmark)
    )
    before = torch.backends.cudnn.benchmark
    for size in ((64, 64), (64, 64), (32, 64), (64, 64)):
        predictor.train_ids(torch.zeros(*size, 3, dtype=torch.uint8).numpy())
        assert torch.backends.cudnn.benchmark is before
    assert found == [True, True, False, True]
