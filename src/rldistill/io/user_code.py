"""Results of user code: actions as parameters of a head, and errors as one line."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rldistill.core.errors import USER_ERRORS, ConfigError, RLDistillError, SpecMismatchError, failure, short_repr
from rldistill.core.heads import ActionHead, BernoulliHead


def one_hot_logits(head: ActionHead, actions: Any, count: int, name: str) -> Tensor:
    """Return the actions of a function as parameters `[count, P]`; raise SpecMismatchError if they are invalid."""
    size = math.prod(head.action_shape)
    if not head.discrete:
        form = f"{size} numbers"
    elif isinstance(head, BernoulliHead):
        form = f"{size} numbers, 0 or 1"
    elif size == 1:
        form = f"an integer from 0 to {head.nvec[0] - 1}"
    else:
        form = f"{size} integers, below {', '.join(map(str, head.nvec))}"
    expected = f"expected {form} for each observation. Correct its actions."
    try:
        array = np.asarray(_without_tensors(actions))
    except ValueError:  # of different shapes
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise SpecMismatchError(f"teacher: {name} returns {short_repr(actions)} as its actions, {expected}")
    if not array.ndim or len(array) != count or array.size != count * size:
        found = f"actions of shape {list(array.shape)} for {count} observations"
        raise SpecMismatchError(f"teacher: {name} returns {found}, {expected}")
    array = array.reshape(count, size)
    if not head.discrete:
        if not np.isfinite(array).all():
            raise SpecMismatchError(f"teacher: {name} returns NaN or infinite actions, {expected}")
        return torch.from_numpy(array.astype(np.float32))
    for column, limit in zip(array.T, head.choices, strict=True):
        invalid = column[(column != np.round(column)) | (column < 0) | (column >= limit)]
        if len(invalid):
            raise SpecMismatchError(f"teacher: {name} returns action {invalid[0]:g}, {expected}")
    choices = torch.from_numpy(array.astype(np.int64))
    return head.certain(choices[:, 0] if head.single_choice else choices)


def _without_tensors(value: Any) -> Any:
    """Return actions with arrays in place of tensors, which may be on a GPU or part of a graph of gradients."""
    if isinstance(value, Tensor):
        value = value.detach().to_dense().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16
    return [_without_tensors(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def wrap_errors(name: str) -> Iterator[None]:
    """Raise any error within the block as a ConfigError about the code `name`, with the line that raised it.

    Errors of this package, such as those of `load_policy`, are raised as they are.
    """
    try:
        yield
    except RLDistillError:
        raise
    except USER_ERRORS as error:
        raise ConfigError(f"{name} failed: {failure(error)}.") from error
