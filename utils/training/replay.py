"""Repeats the same GPU work with a single launch."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from utils.data.batches import Batch

Inputs = TypeVar("Inputs", Batch, torch.Tensor)


class Replay:
    """Calls work(batch), from the fourth call on as a CUDA graph: one launch instead of hundreds.

    The host may need longer for the launches of a small network than the GPU for the work
    (docs/results.md). Everything except the batch must stay the same: the tensors of weights and
    gradients, options. A batch of another shape begins again. If recording fails, it prints so and
    calls work(batch) as before.
    """

    WARM_UP = 3  # calls that compile, choose algorithms, fill caches

    def __init__(self) -> None:
        self.calls = 0
        self.shapes: list[torch.Size] = []
        self.forget()

    def forget(self) -> None:
        """Free the memory of the graph (all activations). The next call fills caches again, so that
        none is filled by a recording that may fail; then a new graph is recorded."""
        self.calls = min(self.calls, self.WARM_UP - 1)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[torch.Tensor] = []
        self.result: torch.Tensor | None = None

    def __call__(self, work: Callable[[Inputs], torch.Tensor], batch: Inputs) -> torch.Tensor:
        shapes = [tensor.shape for tensor in tensors(batch)]
        if shapes != self.shapes:
            self.forget()
            self.shapes, self.calls = shapes, min(self.calls, 0)
        self.calls += 1
        if self.calls > self.WARM_UP and self.graph is None:
            self.record(work, batch)
        if self.graph is None:
            return work(batch)
        torch._foreach_copy_(self.inputs, tensors(batch))
        self.graph.replay()
        return self.result.clone()

    def record(self, work: Callable[[Inputs], torch.Tensor], batch: Inputs) -> None:
        """Record work(batch) as a graph, without computing it."""
        own = batch.to(tensors(batch)[0].device, copy=True)
        try:
            graph = torch.cuda.CUDAGraph()
            # Threads of the loader allocate memory during the recording.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.result = work(own)
        except RuntimeError as error:
            what = str(error).splitlines()[0]
            print(f"no CUDA graph could be recorded, which is slower ({what})", file=sys.stderr)
            self.calls = -sys.maxsize
            return
        self.graph, self.inputs = graph, tensors(own)


def tensors(batch: Batch | torch.Tensor) -> list[torch.Tensor]:
    return [batch] if isinstance(batch, torch.Tensor) else batch.tensors()
