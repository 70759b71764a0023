"""What somebody else's function says: its actions as a head that is certain, its failures as one line."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rldistill.core.errors import ConfigError, SpecMismatchError, short_repr
from rldistill.core.heads import ActionHead, BernoulliHead

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def one_hot_logits(head: ActionHead, said: Any, count: int, name: str) -> Tensor:
    """The actions that a function gave for `count` observations as the numbers of `head`, `[B, P]`.

    Raises:
        SpecMismatchError: they are no actions of the environment, or not `count`; it names `name`.
    """
    each = len(head.choices or head.low)
    try:
        actions = np.asarray(said)
    except ValueError:  # of different shapes
        actions = np.asarray(None)
    if actions.dtype.kind not in "biuf":
        raise SpecMismatchError(f"teacher: {name} gives {short_repr(said)} as its actions; expected {_expected(head)}")
    if not actions.ndim or len(actions) != count or actions.size != count * each:
        found = f"actions of shape {list(actions.shape)} for {count} observations"
        raise SpecMismatchError(f"teacher: {name} gives {found}; expected {_expected(head)}")
    actions = actions.reshape(count, each)
    if not head.discrete:
        if not np.isfinite(actions).all():
            raise SpecMismatchError(f"teacher: {name} gives NaN or infinite actions; expected {_expected(head)}")
        return torch.from_numpy(actions.astype(np.float32))
    for chosen, size in zip(actions.T, head.choices, strict=True):
        wrong = chosen[(chosen != np.round(chosen)) | (chosen < 0) | (chosen >= size)]
        if len(wrong):
            raise SpecMismatchError(f"teacher: {name} chose action {wrong[0]:g}; expected {_expected(head)}")
    choices = torch.from_numpy(actions.astype(np.int64))
    return head.certain(choices[:, 0] if head.single_choice else choices)


def _expected(head: ActionHead) -> str:
    """One action of these, in words."""
    if not head.discrete:
        return f"{len(head.low)} numbers for each"
    if isinstance(head, BernoulliHead):
        return f"{head.nvec[0]} numbers for each, 0 or 1"
    if len(head.nvec) == 1:
        return f"an integer from 0 to {head.nvec[0] - 1} for each"
    return f"{len(head.nvec)} integers for each, below {', '.join(map(str, head.nvec))}"


@contextmanager
def wrap_errors(name: str) -> Iterator[None]:
    """Let errors within be those of the code that `name` names: a ConfigError with what it raised, and where."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[2:]  # below this one and the one that is within
        own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)] or frames
        where = f" (in {own[-1].name}, {own[-1].filename}, line {own[-1].lineno})" if own else ""
        raise ConfigError(f"teacher: {name} failed: {type(error).__name__}: {error}{where}") from error
