"""Where a mask counts, without asking the device how often."""

import torch


def counted_places(mask_X: torch.Tensor, count: int | None) -> torch.Tensor:
    """Ascending places (C,) int64 at which the mask is not 0. `count`: how many there are; where it is not given the host waits for them.

    A count that is wrong gives wrong places: it is for those who made the mask.
    """
    if count is None:
        return mask_X.nonzero().squeeze(1)
    counted_X = mask_X != 0
    # What is not counted goes to one spare place behind the others.
    rank_X = torch.where(counted_X, counted_X.cumsum(0) - 1, count)
    places = torch.empty(count + 1, dtype=torch.int64, device=mask_X.device)
    return places.scatter_(0, rank_X, torch.arange(len(mask_X), device=mask_X.device))[:count]
