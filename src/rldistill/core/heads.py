"""Action heads: the meaning of the numbers that a policy returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from rldistill.core.errors import SpecMismatchError

HeadKind = Literal[
    "categorical", "q_values", "multi_categorical", "bernoulli", "gaussian", "squashed_gaussian", "deterministic"
]


MASK = "action_mask"
"""The entry of an observation that says which actions are legal."""


ILLEGAL = -1e8
"""The logit or value of an action that is not."""


@dataclass(frozen=True)
class ActionHead:
    """What the numbers in `PolicyOutput.params` mean."""

    kind: HeadKind
    nvec: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def discrete(self) -> bool:
        """Whether actions are integers."""
        return self.kind in ("categorical", "q_values", "multi_categorical", "bernoulli")

    @property
    def choices(self) -> tuple[int, ...]:
        """Sizes of the choices that a mask tells of, one after the other: of a bit 2, whether it may be 0 and 1."""
        return (2,) * sum(self.nvec) if self.kind == "bernoulli" else self.nvec

    @property
    def neutral(self) -> ActionHead:
        """The head that says nothing of how actions are chosen: `categorical`, or `deterministic`."""
        kind: HeadKind = self.kind if self.kind in ("multi_categorical", "bernoulli") else "categorical"
        return replace(self, kind=kind if self.discrete else "deterministic")

    def read_as(self, kind: HeadKind | None, name: str) -> ActionHead:
        """The head of the same actions whose numbers mean `kind`, or this one if none is given.

        Raises:
            SpecMismatchError: `kind`, which was given for `name`, is for other actions.
        """
        head = self if kind is None else replace(self, kind=kind)
        if head.neutral != self.neutral:
            known = [other for other in get_args(HeadKind) if replace(self, kind=other).neutral == self.neutral]
            raise SpecMismatchError(f"{name}: a head of {kind} is for other actions; expected {' or '.join(known)}")
        return head

    @property
    def num_params(self) -> int:
        """P, the length of `PolicyOutput.params`."""
        if self.discrete:
            return sum(self.nvec)
        return len(self.low) * (2 if "gaussian" in self.kind else 1)
