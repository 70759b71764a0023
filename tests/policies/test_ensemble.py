from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.stats import entropy
from torch import Tensor

from rldistill.core.errors import SpecMismatchError
from rldistill.core.heads import (
    ILLEGAL,
    MASK,
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    MultiCategoricalHead,
    QValuesHead,
)
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec, Wrapper
from rldistill.envs.spaces import spec_from_spaces
from rldistill.policies.actor_critic import Actor
from rldistill.policies.ensemble import Ensemble, Vote
from rldistill.policies.wrappers import with_action_mask
from rldistill.students import Mlp


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


@dataclass(frozen=True)
class Repeats(Fixed):
    """Policy whose outputs are its observations."""

    params: tuple[float, ...] = ()

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, None]:
        assert isinstance(obs, Tensor)
        return PolicyOutput(self.head, obs), None


LOGITS, VALUES = CategoricalHead((2,)), QValuesHead((2,))
BOX = DeterministicHead(low=(-1.0,), high=(1.0,))
OBS = torch.zeros(3, 2)


def combined(*members: Fixed, vote: str = "mean") -> PolicyOutput:
    return Ensemble(members, vote)(OBS)[0]  # type: ignore[arg-type]


def masked_spec(actions: int) -> PolicySpec:
    """Return the spec of two observed numbers and an action mask."""
    space = spaces.Dict({"obs": spaces.Box(0, 1, (2,)), MASK: spaces.MultiBinary(actions)})
    return spec_from_spaces("it", space, spaces.Discrete(actions))


def chances(p: float) -> tuple[float, float]:
    return tuple(torch.tensor([p, 1 - p]).log().tolist())


def test_probabilities_are_averaged() -> None:
    output = combined(Fixed(LOGITS, chances(0.9)), Fixed(LOGITS, chances(0.3)))
    torch.testing.assert_close(output.params.exp()[0], torch.tensor([0.6, 0.4]))


def test_q_values_are_averaged() -> None:
    output = combined(Fixed(VALUES, (1.0, 2.0)), Fixed(VALUES, (5.0, 0.0)))
    assert output.head.kind == "q_values"
    assert output.params[0].tolist() == [3.0, 1.0]


def test_actions_are_averaged() -> None:
    assert combined(Fixed(BOX, (0.5,)), Fixed(BOX, (-1.0,))).mode()[0].tolist() == [-0.25]


def test_the_majority_outvotes_the_one_that_is_surest() -> None:
    members = Fixed(LOGITS, chances(0.99)), Fixed(LOGITS, chances(0.4)), Fixed(LOGITS, chances(0.4))
    assert combined(*members).mode()[0] == 0
    majority = combined(*members, vote="majority")
    assert majority.mode()[0] == 1
    torch.testing.assert_close(majority.params.exp()[0], torch.tensor([1 / 3, 2 / 3]))


def test_confidence_weights_by_entropy() -> None:
    output = combined(Fixed(LOGITS, chances(0.5)), Fixed(LOGITS, chances(1 - 1e-7)), vote="confidence")
    torch.testing.assert_close(output.params.exp()[0], torch.tensor([1.0, 0.0]), atol=1e-4, rtol=0)


def test_heads_that_differ_meet_as_probabilities() -> None:
    output = combined(Fixed(LOGITS, chances(0.5)), Fixed(VALUES, (2.0, 0.0)))  # a gap of 2, a temperature of 1
    expected = (0.5 + 1 / (1 + torch.tensor(-2.0).exp())) / 2
    torch.testing.assert_close(output.params.exp()[0, 0], expected)


def test_the_temperature_of_values_is_a_state_s_own() -> None:
    # Of (1, 0, 0): T = (1 + 1) / 2 / 2 = 1/2 and p(0) = e^2 / (e^2 + 2), far above what logits (0, 0.5, 0) give.
    members = Repeats(QValuesHead((3,))), Fixed(CategoricalHead((3,)), (0.0, 0.5, 0.0))
    obs, e = torch.tensor([[1.0, 0.0, 0.0], [100.0, 0.0, 0.0]]), math.e
    q = np.array([e**2, 1, 1]) / (e**2 + 2)
    logits = np.array([1, e**0.5, 1]) / (e**0.5 + 2)
    votes: tuple[Vote, ...] = "mean", "confidence"
    for vote in votes:
        together = Ensemble(members, vote)
        both = together(obs)[0].params
        torch.testing.assert_close(together(obs[:1])[0].params, both[:1])
        torch.testing.assert_close(both[0], both[1])  # 100 times the rewards, the same opinion
        weight = [1 - entropy(p) / math.log(3) for p in (q, logits)] if vote == "confidence" else [1, 1]
        expected = (weight[0] * q + weight[1] * logits) / sum(weight)
        np.testing.assert_allclose(both[0].exp(), expected, rtol=1e-4)


def test_actions_that_are_nearly_as_good_stay_nearly_as_likely() -> None:
    members = Fixed(QValuesHead((3,)), (1.0, 0.999, 0.0)), Fixed(CategoricalHead((3,)), (0.0,) * 3)
    p = combined(*members).params[0].exp() * 2 - 1 / 3  # T = (0.001 + 1) / 2 / 2, so p(1) / p(0) = e^(-0.001 / T)
    assert float(p[1] / p[0]) == pytest.approx(math.exp(-0.001 * 4 / 1.001), abs=1e-5)


def test_values_that_differ_by_rounding_count_as_equal() -> None:
    value = torch.tensor(100.0)
    above = float(torch.nextafter(value, torch.tensor(200.0)))
    members = Fixed(VALUES, (100.0, above)), Fixed(LOGITS, (0.0, 0.0))
    torch.testing.assert_close(combined(*members).params[0].exp(), torch.tensor([0.5, 0.5]), atol=0.01, rtol=0)


def test_bits_are_averaged_as_probabilities() -> None:
    bits = BernoulliHead((2,))
    output = combined(Fixed(bits, (10.0, -40.0)), Fixed(bits, (-1.0, -40.0)))
    # (sigmoid(10) + sigmoid(-1)) / 2 = (0.9999546 + 0.2689414) / 2
    assert float(output.params[0, 0].sigmoid()) == pytest.approx(0.6344480, abs=1e-6)
    assert output.params[0, 1] < -18
    assert output.head == bits


def test_each_part_of_an_action_is_averaged_as_probabilities() -> None:
    parts = MultiCategoricalHead((2, 3))
    output = combined(Fixed(parts, (10.0, 0.0, 0.0, 0.0, 0.0)), Fixed(parts, (0.0, 1.0, *chances(0.75), -99.0)))
    chance = output.params[0].exp()
    # sigmoid(10) and sigmoid(-1) again; (1/3 + 3/4) / 2, (1/3 + 1/4) / 2 and 1/3 / 2
    torch.testing.assert_close(chance, torch.tensor([0.634448, 0.365552, 0.541667, 0.291667, 0.166667]))


@pytest.mark.parametrize("vote", ["majority", "mean", "confidence"])
def test_votes_are_cast_among_legal_actions(vote: Vote) -> None:
    # All prefer action 0, which is illegal; of the others two prefer 2 and one prefers 1.
    sure = [(99.0, *(30.0 * (action == liked) for action in (1, 2, 3))) for liked in (2, 2, 1)]
    members = tuple(Fixed(CategoricalHead((4,)), params) for params in sure)
    env = masked_spec(4)
    output, _ = with_action_mask(Ensemble(members, vote), env)(torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(output.params[0, 1:].exp(), torch.tensor([1 / 3, 2 / 3, 0.0]))
    assert output.params[0, 0] == ILLEGAL
    assert output.mask is not None
    assert output.mask.tolist() == [[False, True, True, True]]
    alone, _ = Ensemble(tuple(with_action_mask(member, env) for member in members), vote)(
        torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    )
    torch.testing.assert_close(alone.params, output.params)


def test_members_with_and_without_a_mask_vote_together() -> None:
    env, params = masked_spec(3), (9.0, 1.0, 0.0)
    blind = Fixed(CategoricalHead((3,)), params)
    looking = with_action_mask(blind, env)
    for members in ((blind, looking), (looking, blind)):
        together = Ensemble(members)
        assert together.spec == dataclasses.replace(env, head=blind.head)
        with pytest.raises(SpecMismatchError, match="observation shape"):
            together.spec.require_same_input(env.unmasked, "it", "an environment without a mask")
        output, _ = with_action_mask(together, env)(torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]]))
        torch.testing.assert_close(output.params[0, 1:].exp(), torch.tensor([1.0, 0.0]).sub(0.268941).abs())


def test_the_temperature_is_that_of_legal_values() -> None:
    members = Fixed(QValuesHead((3,)), (99.0, 2.0, 0.0)), Fixed(CategoricalHead((3,)), (0.0,) * 3)
    output, _ = with_action_mask(Ensemble(members), masked_spec(3))(torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0]]))
    # a gap of 2, a temperature of 1: (sigmoid(2) + 1/2) / 2
    torch.testing.assert_close(output.params[0, 1:].exp(), torch.tensor([0.690398, 0.309602]))


@pytest.mark.parametrize("vote", ["majority", "mean", "confidence"])
def test_where_one_action_is_left_all_agree(vote: Vote) -> None:
    members = Fixed(LOGITS, (9.0, 0.0)), Fixed(VALUES, (9.0, 0.0))
    output, _ = with_action_mask(Ensemble(members, vote), masked_spec(2))(torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
    assert output.params.tolist() == [[ILLEGAL, 0.0]]


def test_members_of_other_action_spaces_are_refused() -> None:
    with pytest.raises(SpecMismatchError, match="majority"):
        Ensemble((Fixed(BOX, (0.0,)),), "majority")
    with pytest.raises(SpecMismatchError, match="kind of action"):
        Ensemble((Fixed(BOX, (0.0,)), Fixed(LOGITS, (0.0, 0.0))))
    with pytest.raises(SpecMismatchError, match="kind of action"):  # two bits are not one of two actions
        Ensemble((Fixed(BernoulliHead((2,)), (0.0, 0.0)), Fixed(LOGITS, (0.0, 0.0))))


def test_members_that_see_different_things_are_refused() -> None:
    plain = PolicySpec((2,), "float32", LOGITS)
    masked = dataclasses.replace(plain, view=(Wrapper("MaskVelocity"),))
    heavy, light, long = (
        dataclasses.replace(plain, env_kwargs=item)
        for item in ((("gravity", -10),), (("gravity", -5),), (("steps", 9),))
    )
    build = Mlp((4,)).build
    for pair in ((plain, masked), (masked, plain)):
        with pytest.raises(SpecMismatchError, match="MaskVelocity"):
            Ensemble(tuple(map(build, pair)))
    assert Ensemble((build(masked), build(masked))).spec.view == masked.view
    with pytest.raises(SpecMismatchError, match=r"member 2 was trained with gravity=-5, an earlier one with -10"):
        Ensemble((build(plain), build(heavy), build(light)))
    together = Ensemble((build(plain), build(heavy), build(long)))
    assert dict(together.spec.env_kwargs) == {"gravity": -10, "steps": 9}


def test_members_remember_each_for_itself() -> None:
    spec = PolicySpec((2,), "float32", LOGITS)
    torch.manual_seed(0)
    members = Actor(lstm=(3, 1)).build(spec), Mlp((4,)).build(spec), Actor(lstm=(5, 2)).build(spec)
    together, obs = Ensemble(members), torch.randn(4, 3, 2)
    state, own = together.initial_state(3), [member.initial_state(3) for member in members]
    with torch.no_grad():
        for step in obs:
            output, state = together(step, state)
            results = [member(step, mine) for member, mine in zip(members, own, strict=True)]
            own = [mine for _, mine in results]
            chances = torch.stack([alone.params.softmax(-1) for alone, _ in results]).mean(0)
            torch.testing.assert_close(output.params.exp(), chances)
