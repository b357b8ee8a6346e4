"""Copies between the host and a device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy of a uint8 array on the device; a copy to a GPU is asynchronous."""
    if device.type != "cuda":
        return torch.tensor(array)
    return pinned(array).to(device, non_blocking=True)


def pinned(array: np.ndarray) -> torch.Tensor:
    """Copy of a uint8 array in pinned memory, which a GPU reads without the CPU."""
    host = torch.empty(array.shape, dtype=torch.uint8, pin_memory=True)
    host.numpy()[...] = array
    return host


def to_host(tensor: torch.Tensor | dict[str, torch.Tensor]) -> Callable[[], Any]:
    """Start a copy to the host; the returned function waits for the array, or the arrays by name,
    in any thread."""
    if isinstance(tensor, dict):
        copies = {name: to_host(value) for name, value in tensor.items()}
        return lambda: {name: copy() for name, copy in copies.items()}
    if tensor.device.type != "cuda":
        return tensor.numpy
    host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # else waiting threads would spin
    copied.record(torch.cuda.current_stream(tensor.device))

    def arrived() -> np.ndarray:
        with torch.cuda.device(tensor.device):  # a new thread uses GPU 0
            copied.synchronize()
        return host.numpy()

    return arrived
