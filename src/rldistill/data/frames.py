"""Frame stacks from frames that are stored once."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Padding = Literal["zero", "repeat"]


def stack_frames(
    frames: NDArray[np.uint8],
    index: NDArray[np.integer[Any]],
    age: NDArray[np.int64],
    depth: int,
    padding: Padding,
    stride: int = 1,
    channels_last: bool = True,
) -> NDArray[np.uint8]:
    """Gather the last `depth` frames before and at each index, oldest first.

    Args:
        frames: `[N, *frame]`; row `i - k * stride` (modulo N) is the frame k steps before row `i`.
        index: `[B]`, row of the newest frame of each stack.
        age: `[B]`, steps since the episode began (0 at its first observation). Earlier frames are padding.
        depth: Frames in a stack.
        padding: `zero` (ale-py), or `repeat` of the first frame (Gymnasium).
        stride: Rows between two steps of an episode.
        channels_last: Order in memory; CPUs convolve fastest with channels last, and flatten fastest without.

    Returns:
        `[B, depth, *frame]` of the dtype of `frames`.
    """
    if channels_last:
        out = np.moveaxis(np.empty((len(index), *frames.shape[1:], depth), frames.dtype), -1, 1)
    else:
        out = np.empty((len(index), depth, *frames.shape[1:]), frames.dtype)
    for back in range(depth):
        reach = np.minimum(back, age)
        out[:, depth - 1 - back] = frames[(index - reach * stride) % len(frames)]
        if padding == "zero":
            out[back > age, depth - 1 - back] = 0
    return out
