"""UPSNet's panoptic head, which has no parameters, and its rules (arXiv 1901.03784, section 3.2).

Channels of the head: those of stuff, one per instance, and "unknown", for things that no instance
explains. Boxes are (n,4): left, top, right, bottom; right and bottom are outside.
"""

from collections.abc import Iterable

import torch
from torch.nn import functional as F

BAND = 128  # rows that are joined together
INSTANCE = 256  # first code of an instance; codes below are classes of stuff plus 1, 0 is void
COVERED = 0.3  # share of a mask in masks of the same class from which an instance is left out


def resampling(begins: torch.Tensor, ends: torch.Tensor, places: torch.Tensor, cells: int):
    """(n,) sides of boxes, (L,) coordinates -> (n,L,cells): how much each cell of a grid in the box
    counts at each place, bilinear, and 0 outside the box."""
    share = (places - begins[:, None]) / (ends - begins)[:, None]
    inside = (share >= 0) & (share < 1)
    cell = (share * cells - 0.5).clamp(0, cells - 1)
    distance = (cell[..., None] - torch.arange(cells, device=cell.device)).abs()
    return (1 - distance).clamp_min(0) * inside[..., None]


def paste(masks: torch.Tensor, boxes: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor):
    """(n,m,m) values in boxes -> (n,h,w) at the pixels with these coordinates, 0 outside boxes."""
    left, top, right, bottom = boxes.unbind(1)
    down = resampling(top, bottom, rows, masks.shape[1])
    across = resampling(left, right, columns, masks.shape[2])
    return down @ masks @ across.mT


def join(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    classes: torch.Tensor,
    masks: torch.Tensor,
    things: torch.Tensor,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    top: int = 0,
    outside: float = 0.0,
) -> torch.Tensor:
    """(K,h,w) semantic logits, (n,4) boxes, (n,) classes, (n,m,m) logits of masks, (K,) bool things
    -> (S+n+1,h,w) panoptic logits (equations 1 and 2).

    scale: pixels of the boxes per row and column of the logits. top: the first row of the logits.
    outside: logit of an instance outside its box, 0 in the paper. Where all of stuff is below 0,
    that lets an instance win far away, so predictions take -inf.
    """
    rows, columns = (
        (torch.arange(count, device=logits.device) + first + 0.5) * step
        for count, first, step in zip(logits.shape[1:], (top, 0), scale, strict=True)
    )
    inside = paste(torch.ones_like(masks[:, :1, :1]), boxes, rows, columns)
    own = logits[classes] * inside
    best = own.amax(0) if len(own) else torch.zeros_like(logits[0])
    unknown = logits[things].amax(0) - best
    joined = own + paste(masks, boxes, rows, columns)
    if outside:
        joined.masked_fill_(inside == 0, outside)
    return torch.cat([logits[~things], joined, unknown[None]])


def not_covered(masks: Iterable[torch.Tensor], classes: torch.Tensor) -> torch.Tensor:
    """n (h,w) bool masks, best first, (n,) classes -> (n,) bool: the instances to keep."""
    taken: dict[int, torch.Tensor] = {}
    kept = []
    for mask, number in zip(masks, classes.tolist(), strict=True):
        before = taken.get(number, torch.zeros_like(mask))
        kept.append(bool(mask.any() and (mask & before).sum() <= COVERED * mask.sum()))
        if kept[-1]:
            taken[number] = before | mask
    return torch.tensor(kept, dtype=torch.bool, device=classes.device)


def segment(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    classes: torch.Tensor,
    masks: torch.Tensor,
    things: torch.Tensor,
    *,
    size: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(K,h,w) semantic logits and instances, best first, with boxes in pixels of an image of `size`
    -> its (H,W) int16 codes of segments and (H,W) uint8 train ids.

    A code from INSTANCE on is the number of an instance. Most pixels of an instance decide about
    it: if at least half are of one class of stuff, it becomes that class.
    """
    rows, columns = (torch.arange(side, device=logits.device) + 0.5 for side in size)
    pasted = (
        paste(mask[None], box[None], rows, columns)[0] > 0
        for mask, box in zip(masks, boxes, strict=True)
    )  # one at a time, because 100 of them fill a GiB
    kept = not_covered(pasted, classes)
    boxes, masks, numbers = boxes[kept], masks[kept], kept.nonzero()[:, 0]
    own = classes[kept]
    stuff = (~things).nonzero()[:, 0]

    beyond = {"outside": -torch.inf}
    full = F.interpolate(logits[None], size, mode="bilinear")[0]
    train_ids = full.argmax(0)
    table = torch.cat([stuff + 1, numbers + INSTANCE, stuff.new_zeros(1)])
    codes = torch.cat([
        table[join(band, boxes, own, masks, things, top=BAND * number, **beyond).argmax(0)]
        for number, band in enumerate(full.split(BAND, 1))
    ])  # fmt: skip

    count, most = len(logits), INSTANCE + len(classes)
    votes = torch.bincount((codes * count + train_ids).flatten(), minlength=most * count)
    votes = votes.view(-1, count)
    share, winner = (votes / votes.sum(1, keepdim=True).clamp_min(1)).max(1)
    table = torch.arange(most, device=codes.device)
    overruled = (table >= INSTANCE) & ~things[winner] & (share >= 0.5)
    return torch.where(overruled, winner + 1, table)[codes].short(), train_ids.byte()
