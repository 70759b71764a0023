"""Action heads, against SciPy and closed forms."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy import special, stats
from torch import Tensor

from rldistill.core.errors import SpecMismatchError
from rldistill.core.heads import (
    HEADS,
    ILLEGAL,
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    GaussianHead,
    HeadKind,
    MultiCategoricalHead,
    QValuesHead,
    SquashedGaussianHead,
)
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Head

LOW, HIGH = (-1.0, -2.0), (1.0, 2.0)
ALL = [
    CategoricalHead((3,)),
    QValuesHead((3,)),
    MultiCategoricalHead((3, 2)),
    BernoulliHead((2,)),
    GaussianHead(low=LOW, high=HIGH),
    SquashedGaussianHead(low=LOW, high=HIGH),
    DeterministicHead(low=LOW, high=HIGH),
]
WIDE = GaussianHead(low=(-1.0,) * 3, high=(1.0,) * 3)
STOCHASTIC = [*(head for head in ALL if head.stochastic), WIDE]
COMPARABLE = [*(head for head in ALL if head.stochastic or head.discrete), WIDE]
by_kind = pytest.mark.parametrize("head", ALL, ids=lambda head: head.kind)


def random_params(head: ActionHead, lead: tuple[int, ...] = (), seed: int = 0) -> Tensor:
    return torch.randn(*lead, head.num_params, generator=torch.Generator().manual_seed(seed))


def mode(head: ActionHead, params: Tensor) -> Tensor:
    return PolicyOutput(head, params).mode()


def sample(head: ActionHead, params: Tensor, generator: torch.Generator) -> Tensor:
    return PolicyOutput(head, params).sample(generator)


def joint_actions(head: ActionHead) -> Iterator[tuple[int, ...]]:
    """Yield every action of a discrete head, one integer for each choice."""
    return product(*map(range, head.choices))


def joint_probabilities(head: ActionHead, params: Tensor) -> NDArray[np.float64]:
    """Return the probability of each joint action, by SciPy in float64."""
    numbers = params.double().numpy()
    if isinstance(head, BernoulliHead):
        parts = [np.array([1 - p, p]) for p in special.expit(numbers)]
    else:
        parts = [special.softmax(part) for part in np.split(numbers, np.cumsum(head.nvec)[:-1])]
    return np.array(
        [math.prod(part[a] for part, a in zip(parts, action, strict=True)) for action in joint_actions(head)]
    )


def normals(params: Tensor) -> list[stats.rv_continuous]:
    mean, log_std = params.double().chunk(2)
    return [stats.norm(float(m), math.exp(s)) for m, s in zip(mean, log_std, strict=True)]


@pytest.mark.parametrize("head", STOCHASTIC, ids=lambda head: head.kind)
def test_log_prob_and_entropy_equal_those_of_scipy(head: ActionHead) -> None:
    params = random_params(head)
    if head.discrete:
        expected = np.log(joint_probabilities(head, params))
        actions = torch.tensor([*joint_actions(head)])
        found = head.log_prob(params.expand(len(actions), -1), actions[:, 0] if head.single_choice else actions)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        entropy = stats.entropy(joint_probabilities(head, params))
    else:
        actions = torch.randn(5, len(head.low), generator=torch.Generator().manual_seed(1)) * 3
        expected = sum(norm.logpdf(column) for norm, column in zip(normals(params), actions.T.numpy(), strict=True))
        np.testing.assert_allclose(head.log_prob(params.expand(5, -1), actions), expected, rtol=1e-5)
        entropy = sum(norm.entropy() for norm in normals(params))
    assert head.entropy(params).item() == pytest.approx(float(entropy), rel=1e-5)


@pytest.mark.parametrize("head", COMPARABLE, ids=lambda head: head.kind)
def test_kl_equals_that_of_scipy(head: ActionHead) -> None:
    p, q = random_params(head, seed=1), random_params(head, seed=2)
    if head.discrete:
        expected = stats.entropy(joint_probabilities(head, p), joint_probabilities(head, q))
    else:
        # Integral of p log(p / q), by quadrature, for each entry of an action.
        expected = sum(
            a.expect(lambda x, a=a, b=b: a.logpdf(x) - b.logpdf(x)) for a, b in zip(normals(p), normals(q), strict=True)
        )
    assert head.kl(p, q).item() == pytest.approx(float(expected), rel=1e-5)


@by_kind
def test_frequencies_of_samples_are_the_probabilities(head: ActionHead) -> None:
    params, generator = random_params(head), torch.Generator().manual_seed(0)
    samples = sample(head, params.expand(20_000, -1), generator)
    if not head.stochastic:
        assert (samples == mode(head, params)).all()
    elif head.discrete:
        drawn = samples.reshape(20_000, -1)
        counts = [(drawn == torch.tensor(action)).all(1).sum().item() for action in joint_actions(head)]
        assert stats.chisquare(counts, 20_000 * joint_probabilities(head, params)).pvalue > 1e-3
    else:
        for norm, column, low, high in zip(normals(params), samples.T.double().numpy(), LOW, HIGH, strict=True):
            if isinstance(head, SquashedGaussianHead):
                raw = np.arctanh((2 * column - low - high) / (high - low))
                assert stats.kstest(raw, norm.cdf).pvalue > 1e-3
            else:
                inside = np.abs(column) < high
                assert column.min() >= low
                assert column.max() <= high
                assert inside.mean() == pytest.approx(norm.cdf(high) - norm.cdf(low), abs=0.02)


@by_kind
@pytest.mark.parametrize("lead", [(), (5,), (3, 4)], ids=["none", "B", "TB"])
def test_leading_dimensions_are_kept(head: ActionHead, lead: tuple[int, ...]) -> None:
    params, generator = random_params(head, lead), torch.Generator().manual_seed(0)
    action = mode(head, params)
    entries = () if head.single_choice else (len(head.choices or head.low),)
    assert action.shape == sample(head, params, generator).shape == (*lead, *entries)
    assert action.dtype == (torch.int64 if head.discrete else torch.float32)
    assert head.nll(params, action).shape == lead
    if head.discrete:
        assert not torch.as_tensor(head.regret(params, action)).any()
    if head in COMPARABLE:
        assert head.kl(params, params).shape == lead
    if head.stochastic:
        assert head.log_prob(params, action).shape == head.entropy(params).shape == lead


@pytest.mark.parametrize("head", [head for head in ALL if head.discrete], ids=lambda head: head.kind)
def test_mode_has_the_highest_probability_and_no_regret(head: ActionHead) -> None:
    params = random_params(head, (50,))
    modes = mode(head, params)
    actions = [*joint_actions(head)]
    best = [actions[joint_probabilities(head, row).argmax()] for row in params]
    assert modes.reshape(50, -1).tolist() == [list(action) for action in best]
    regret = head.regret(params, modes)
    assert regret is not None
    assert not regret.any()
    # The regret of any action is the difference of log-probabilities, or of Q values.
    row = params[:1].expand(len(actions), -1)
    every = torch.tensor(actions)[:, 0] if head.single_choice else torch.tensor(actions)
    logs = np.log(joint_probabilities(head, params[0]))
    np.testing.assert_allclose(head.regret(row, every), logs.max() - logs, rtol=1e-4, atol=1e-6)


def test_continuous_modes_stay_within_bounds() -> None:
    means = torch.tensor([0.5, -9.0])
    assert mode(DeterministicHead(low=LOW, high=HIGH), means).tolist() == [0.5, -2.0]
    params = torch.cat([means, torch.zeros(2)])
    assert mode(GaussianHead(low=LOW, high=HIGH), params).tolist() == [0.5, -2.0]
    assert GaussianHead(low=LOW, high=HIGH).raw_mode(params).tolist() == [0.5, -9.0]
    squashed = mode(SquashedGaussianHead(low=(0.0, -2.0), high=(4.0, 2.0)), params)
    assert squashed.tolist() == pytest.approx([2 * (math.tanh(0.5) + 1), 2 * math.tanh(-9)], abs=1e-6)


def test_nll_of_values_and_deterministic_actions_by_hand() -> None:
    # e^1 / (e^0 + e^1) for the second action
    values = torch.tensor([0.0, 1.0])
    assert QValuesHead((2,)).nll(values, torch.tensor(1)).item() == pytest.approx(math.log(1 + math.e) - 1)
    # (1 - 3)^2 + (2 - 5)^2
    assert DeterministicHead(low=LOW, high=HIGH).nll(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])).item() == 13


@pytest.mark.parametrize("head", [head for head in ALL if head.discrete], ids=lambda head: head.kind)
def test_illegal_actions_are_never_chosen(head: ActionHead) -> None:
    legal = torch.ones(sum(head.choices), dtype=torch.bool)
    legal[0] = False  # the first option of the first choice
    params = torch.full((500, head.num_params), 0.0)
    params[:, 0] = -50.0 if isinstance(head, BernoulliHead) else 50.0
    output = PolicyOutput(head, params).masked(legal.expand(500, -1))
    for action in (output.mode(), output.sample(torch.Generator().manual_seed(0))):
        assert (action.reshape(500, -1)[:, 0] != 0).all()
    assert output.params.abs().max() == -ILLEGAL


@pytest.mark.parametrize("head", [head for head in ALL if head.discrete], ids=lambda head: head.kind)
def test_certain_params_choose_their_action(head: ActionHead) -> None:
    actions = torch.tensor([*joint_actions(head)])
    actions = actions[:, 0] if head.single_choice else actions
    params = head.certain(actions)
    assert params.shape == (len(actions), head.num_params)
    assert torch.equal(mode(head, params), actions)
    assert (head.nll(params, actions) < 1e-7).all()


def test_certain_params_of_a_deterministic_head_are_the_action() -> None:
    assert DeterministicHead(low=LOW, high=HIGH).certain(torch.tensor([0.5, 1.5])).tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("head", "method"),
    [
        *((QValuesHead((2,)), method) for method in ("log_prob", "entropy")),
        *((ALL[-1], method) for method in ("log_prob", "entropy", "kl")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_missing_quantities_are_refused(head: ActionHead, method: str) -> None:
    params = torch.zeros(head.num_params)
    arguments = (params,) if method == "entropy" else (params, params)
    with pytest.raises(SpecMismatchError, match=rf"a {head.kind} head has no {method}; expected .*gaussian"):
        getattr(head, method)(*arguments)


@by_kind
def test_json_holds_kind_and_sizes(head: ActionHead) -> None:
    document = json.dumps(head.to_json())
    assert [*json.loads(document)] == ["kind", "nvec", "low", "high"]
    assert json.loads(document)["kind"] == head.kind
    assert TypeAdapter(Head).validate_json(document) == head


def test_every_kind_has_a_class() -> None:
    assert get_args(HeadKind) == tuple(HEADS)
    assert [type(head) for head in ALL] == [*HEADS.values()]


@by_kind
@pytest.mark.parametrize(
    "wrong", [{}, {"nvec": (3, 2), "low": (0.0,), "high": (1.0,)}, {"low": (0.0,)}, {"low": (0.0,), "high": (1.0, 2.0)}]
)
def test_sizes_of_other_heads_are_refused(head: ActionHead, wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(SpecMismatchError, match=f"do not make a {head.kind} head"):
        HEADS[head.kind](**wrong)


@pytest.mark.parametrize("kind", ["categorical", "q_values"])
def test_single_choices_have_one_size(kind: HeadKind) -> None:
    with pytest.raises(SpecMismatchError, match="do not make"):
        HEADS[kind]((3, 2))


@by_kind
def test_heads_turn_into_those_of_the_same_actions_only(head: ActionHead) -> None:
    for kind, other in HEADS.items():
        if other.neutral_kind == head.neutral_kind:
            assert dataclasses.astuple(head.as_kind(kind)) == dataclasses.astuple(head)
        else:
            with pytest.raises(SpecMismatchError, match=f"teacher: a {kind} head does not fit these actions"):
                head.as_kind(kind, "teacher")
    assert head.neutral.kind in ("categorical", "multi_categorical", "bernoulli", "deterministic")


def test_spaces_are_the_same_up_to_bounds_and_values() -> None:
    gaussian = GaussianHead(low=LOW, high=HIGH)
    assert CategoricalHead((3,)).same_space(QValuesHead((3,)))
    assert gaussian.same_space(GaussianHead(low=(-9.0, -9.0), high=(9.0, 9.0)))
    for a, b in [
        (CategoricalHead((3,)), CategoricalHead((2,))),
        (MultiCategoricalHead((3, 2)), MultiCategoricalHead((2, 3))),
        (MultiCategoricalHead((3,)), CategoricalHead((3,))),
        (gaussian, GaussianHead(low=(-1.0,), high=(1.0,))),
        (gaussian, gaussian.neutral),
        (gaussian, gaussian.as_kind("squashed_gaussian")),
        (gaussian, CategoricalHead((2,))),
    ]:
        assert not a.same_space(b)
        assert not b.same_space(a)
