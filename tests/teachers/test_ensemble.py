from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rldistill.errors import SpecMismatchError
from rldistill.students import Mlp
from rldistill.teachers.actor import Actor
from rldistill.teachers.ensemble import Ensemble
from rldistill.types import ActionHead, Obs, PolicyOutput, PolicySpec


@dataclass(frozen=True)
class Fixed:
    """Says the same of every observation."""

    head: ActionHead
    params: tuple[float, ...]

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec((2,), "float32", self.head)

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, None]:
        assert isinstance(obs, Tensor)
        return PolicyOutput(self.head, torch.tensor(self.params).expand(len(obs), -1)), None


LOGITS, VALUES = ActionHead("categorical", (2,)), ActionHead("q_values", (2,))
BOX = ActionHead("deterministic", low=(-1.0,), high=(1.0,))
OBS = torch.zeros(3, 2)


def says(*members: Fixed, vote: str = "mean") -> PolicyOutput:
    return Ensemble(members, vote)(OBS)[0]  # type: ignore[arg-type]


def chances(p: float) -> tuple[float, float]:
    return tuple(torch.tensor([p, 1 - p]).log().tolist())


def test_probabilities_are_averaged() -> None:
    output = says(Fixed(LOGITS, chances(0.9)), Fixed(LOGITS, chances(0.3)))
    torch.testing.assert_close(output.params.exp()[0], torch.tensor([0.6, 0.4]))


def test_q_values_are_averaged() -> None:
    output = says(Fixed(VALUES, (1.0, 2.0)), Fixed(VALUES, (5.0, 0.0)))
    assert output.head.kind == "q_values"
    assert output.params[0].tolist() == [3.0, 1.0]


def test_actions_are_averaged() -> None:
    assert says(Fixed(BOX, (0.5,)), Fixed(BOX, (-1.0,))).mode()[0].tolist() == [-0.25]


def test_the_majority_outvotes_the_one_that_is_surest() -> None:
    members = Fixed(LOGITS, chances(0.99)), Fixed(LOGITS, chances(0.4)), Fixed(LOGITS, chances(0.4))
    assert says(*members).mode()[0] == 0
    majority = says(*members, vote="majority")
    assert majority.mode()[0] == 1
    torch.testing.assert_close(majority.params.exp()[0], torch.tensor([1 / 3, 2 / 3]))


def test_confidence_weighs_by_what_is_known() -> None:
    output = says(Fixed(LOGITS, chances(0.5)), Fixed(LOGITS, chances(1 - 1e-7)), vote="confidence")
    torch.testing.assert_close(output.params.exp()[0], torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)


def test_heads_that_differ_meet_as_probabilities() -> None:
    output = says(Fixed(LOGITS, chances(0.5)), Fixed(VALUES, (2.0, 0.0)))  # a gap of 2, a temperature of 1
    expected = (0.5 + 1 / (1 + torch.tensor(-2.0).exp())) / 2
    torch.testing.assert_close(output.params.exp()[0, 0], expected)


def test_what_cannot_vote_is_refused() -> None:
    with pytest.raises(SpecMismatchError, match="majority"):
        Ensemble((Fixed(BOX, (0.0,)),), "majority")
    with pytest.raises(SpecMismatchError, match="kind of action"):
        Ensemble((Fixed(BOX, (0.0,)), Fixed(LOGITS, (0.0, 0.0))))


def test_members_remember_each_for_itself() -> None:
    spec = PolicySpec((2,), "float32", LOGITS)
    torch.manual_seed(0)
    members = Actor(lstm=(3, 1)).build(spec), Mlp((4,)).build(spec), Actor(lstm=(5, 2)).build(spec)
    together, obs = Ensemble(members), torch.randn(4, 3, 2)
    state, own = together.initial_state(3), [member.initial_state(3) for member in members]
    with torch.no_grad():
        for step in obs:
            output, state = together(step, state)
            said = [member(step, mine) for member, mine in zip(members, own, strict=True)]
            own = [mine for _, mine in said]
            chances = torch.stack([alone.params.softmax(-1) for alone, _ in said]).mean(0)
            torch.testing.assert_close(output.params.exp(), chances)
