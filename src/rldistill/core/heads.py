"""Action heads: the meaning of the numbers in `PolicyOutput.params`.

A new head is one subclass of `ActionHead`, with its kind in `HeadKind`. torch.distributions is not used: its
constructors take longer than a small policy, and its samples would differ from those of recorded datasets.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial, reduce
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from rldistill.core.errors import SpecMismatchError

HeadKind = Literal[
    "categorical", "q_values", "multi_categorical", "bernoulli", "gaussian", "squashed_gaussian", "deterministic"
]

Size = Annotated[int, Ge(1)]
MASK = "action_mask"  # key in a dict observation
ILLEGAL = -1e8  # logit or value of an illegal action; finite, so that no loss becomes NaN
MAX_ACTIONS = 1 << 20  # choices of a head: a file could name a space that fills the memory
CERTAIN_LOGIT = 20.0  # of a certain choice where the others have 0: large, but a KL divergence stays finite
LARGEST = torch.finfo(torch.float32).max
NO_NOISE_LOG_STD = -20.0  # of a policy without noise whose actions are squashed nevertheless
HEADS: dict[str, type[ActionHead]] = {}  # by kind
_sum: Callable[[Iterable[Tensor]], Tensor] = partial(reduce, torch.add)


@dataclass(frozen=True)
class ActionHead(ABC):
    """The distribution, or the values, that a policy's numbers `params` `[..., P]` describe.

    An action is `[...]` for one integer and `[..., A]` otherwise.

    Attributes:
        nvec: the number of options of each discrete choice; the number of bits of a `bernoulli` head.
        low, high: the bounds of a continuous action.
        kind, neutral_kind: the name in files, and that of an environment with the same actions.
        discrete, single_choice: True if actions are integers, and if an action is one integer.
        action_values, stochastic: True if the params are Q values, and if they describe a distribution.
        params_per_entry: the number of params for each entry of a continuous action.
        regret_unit: the unit of `regret`.
    """

    nvec: tuple[Size, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    kind: ClassVar[HeadKind]
    neutral_kind: ClassVar[HeadKind]
    discrete: ClassVar[bool] = False
    single_choice: ClassVar[bool] = False
    action_values: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True
    params_per_entry: ClassVar[int] = 1
    regret_unit: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            HEADS[cls.kind] = cls

    def __post_init__(self) -> None:
        if sum(self.nvec) > MAX_ACTIONS:
            raise SpecMismatchError(f"nvec: more than {MAX_ACTIONS:,} actions. Use a smaller space.")
        choices, low, high = len(self.nvec), len(self.low), len(self.high)
        fits = choices > 0 == low == high if self.discrete else choices == 0 < low == high
        if not fits or (self.single_choice and choices != 1):
            raise SpecMismatchError(f"nvec, low, high: they do not make a {self.kind} head")
        for name in ("low", "high"):  # the largest number in place of infinity, which JSON lacks
            bound = tuple(max(-LARGEST, min(LARGEST, end)) for end in getattr(self, name))
            object.__setattr__(self, name, bound)

    def to_json(self) -> dict[str, Any]:
        """Return the head as it is stored in `policy.json` and `manifest.json`."""
        return {"kind": self.kind, **asdict(self)}

    def as_kind(self, kind: HeadKind, where: str = "head") -> ActionHead:
        """Return the head of `kind` for the same actions; raise SpecMismatchError at `where` if it is for others."""
        kinds = [name for name, head in HEADS.items() if head.neutral_kind == self.neutral_kind]
        if kind not in kinds:
            raise SpecMismatchError(f"{where}: a {kind} head does not fit these actions; expected {' or '.join(kinds)}")
        return HEADS[kind](self.nvec, self.low, self.high)

    def same_space(self, other: ActionHead) -> bool:
        """Return True if both heads are distributions over the same actions."""
        if self.discrete:
            return self.neutral == other.neutral
        # Without bounds, since the KL divergence of squashed Gaussians equals that before tanh.
        return type(self) is type(other) and len(self.low) == len(other.low)

    @cached_property
    def neutral(self) -> ActionHead:
        """The head of an environment with the same actions: no distribution and no values."""
        return self.as_kind(self.neutral_kind)

    @property
    def choices(self) -> tuple[int, ...]:
        """The sizes of the parts of an action mask; a bit has two entries, one for 0 and one for 1."""
        return self.nvec

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of an action: () for one integer, (A,) otherwise."""
        return () if self.single_choice else (len(self.choices or self.low),)

    @property
    def num_params(self) -> int:
        """P, the size of the last dimension of `PolicyOutput.params`."""
        return sum(self.nvec) or self.params_per_entry * len(self.low)

    @abstractmethod
    def raw_mode(self, params: Tensor) -> Tensor:
        """Return the most likely, highest-valued or mean action before `bounded`."""

    def raw_sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random action before `bounded`; the mode if the head is not stochastic."""
        return self.raw_mode(params)

    def bounded(self, action: Tensor) -> Tensor:
        """Return a continuous action within its bounds, a discrete one unchanged."""
        return action if self.discrete else action.clamp(action.new_tensor(self.low), action.new_tensor(self.high))

    def masked(self, params: Tensor, legal: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return params that rule out the actions that `legal` `[..., sum(choices)]` excludes, and a mask of them."""
        return params.masked_fill(~legal, ILLEGAL), legal

    def certain(self, action: Tensor) -> Tensor:
        """Return the params of a policy that always chooses `action`."""
        raise self._missing("certain")

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Return log pi(action), summed over the parts of an action; a continuous one is before `bounded`."""
        raise self._missing("log_prob")

    def entropy(self, params: Tensor) -> Tensor:
        """Return the entropy in nats, summed over the parts of an action; before tanh if squashed."""
        raise self._missing("entropy")

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """Return KL(p || q) of two policies with this head, summed over the parts of an action."""
        raise self._missing("kl")

    def nll(self, params: Tensor, action: Tensor) -> Tensor:
        """Return -log pi(action); a cross-entropy of Q values, a squared error of deterministic actions."""
        return -self.log_prob(params, action)

    def regret(self, params: Tensor, action: Tensor) -> Tensor | None:
        """Return the difference in value or log-probability of the best action and `action`; None if continuous."""
        return None

    def _missing(self, method: str) -> SpecMismatchError:
        kinds = [kind for kind, head in HEADS.items() if getattr(head, method) is not getattr(ActionHead, method)]
        return SpecMismatchError(f"a {self.kind} head has no {method}; expected {' or '.join(kinds)}")


class _ChoiceHead(ActionHead):
    discrete = True
    regret_unit = "nats"

    def raw_mode(self, params: Tensor) -> Tensor:
        return self._join([part.argmax(-1) for part in self._split(params)])

    def raw_sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        choices = []
        for part in self._split(params):  # the Gumbel-max trick (Maddison 2014, arXiv 1411.0030)
            uniform = torch.rand(part.shape, generator=generator).clamp_min(1e-20)
            choices.append((part - (-uniform.log()).log()).argmax(-1))
        return self._join(choices)

    def certain(self, action: Tensor) -> Tensor:
        pairs = zip(self._choices(action), self.nvec, strict=True)
        return CERTAIN_LOGIT * torch.cat([F.one_hot(choice, size).float() for choice, size in pairs], -1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return -self.nll(params, action)

    def nll(self, params: Tensor, action: Tensor) -> Tensor:
        pairs = zip(self._split(params), self._choices(action), strict=True)
        return _sum(-_pick(F.log_softmax(part, -1), choice) for part, choice in pairs)

    def entropy(self, params: Tensor) -> Tensor:
        log_probs = [F.log_softmax(part, -1) for part in self._split(params)]
        return _sum(-(log_p.exp() * log_p).sum(-1) for log_p in log_probs)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        pairs = zip(self._split(p), self._split(q), strict=True)
        logs = [(F.log_softmax(a, -1), F.log_softmax(b, -1)) for a, b in pairs]
        # kl_div takes its arguments in the opposite order.
        return _sum(F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) for log_p, log_q in logs)

    def regret(self, params: Tensor, action: Tensor) -> Tensor | None:
        pairs = zip(self._split(params), self._choices(action), strict=True)
        return _sum(part.amax(-1) - _pick(part, choice) for part, choice in pairs)

    def _split(self, params: Tensor) -> Sequence[Tensor]:
        return [params] if self.single_choice else params.split_with_sizes(self.nvec, -1)

    def _choices(self, action: Tensor) -> Sequence[Tensor]:
        return [action] if self.single_choice else action.unbind(-1)

    def _join(self, choices: list[Tensor]) -> Tensor:
        return choices[0] if self.single_choice else torch.stack(choices, -1)


class CategoricalHead(_ChoiceHead):
    """Logits of one choice among `nvec[0]` actions."""

    kind = neutral_kind = "categorical"
    single_choice = True


class QValuesHead(_ChoiceHead):
    """Values of `nvec[0]` actions; their KL divergence and `nll` take them as logits."""

    kind, neutral_kind = "q_values", "categorical"
    single_choice = action_values = True
    stochastic = False
    regret_unit = "return"

    raw_sample, log_prob, entropy = ActionHead.raw_sample, ActionHead.log_prob, ActionHead.entropy


class MultiCategoricalHead(_ChoiceHead):
    """Logits of several choices, one after the other, among `nvec` options."""

    kind = neutral_kind = "multi_categorical"


class BernoulliHead(ActionHead):
    """One logit for each of `nvec[0]` bits."""

    kind = neutral_kind = "bernoulli"
    discrete = True
    regret_unit = "nats"

    @property
    def choices(self) -> tuple[int, ...]:
        """Two entries of an action mask for each bit."""
        return (2,) * sum(self.nvec)

    def raw_mode(self, params: Tensor) -> Tensor:
        """Return 1 for each bit with a positive logit."""
        return (params > 0).long()

    def raw_sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Return 1 for each bit with probability sigmoid(params)."""
        return (torch.rand(params.shape, generator=generator) < params.sigmoid()).long()

    def masked(self, params: Tensor, legal: Tensor) -> tuple[Tensor, None]:
        """Return the logits that choose the only legal value of a bit; they need no mask."""
        off, on = legal[..., ::2], legal[..., 1::2]
        return params.masked_fill(~on, ILLEGAL).masked_fill(~off, -ILLEGAL), None

    def certain(self, action: Tensor) -> Tensor:
        """Return a large positive logit for each 1, a negative one for each 0."""
        return CERTAIN_LOGIT * (2 * action.float() - 1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Return the sum over bits of log sigmoid(params), or log(1 - sigmoid(params)) where a bit is 0."""
        return -F.binary_cross_entropy_with_logits(params, action.float(), reduction="none").sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Return the sum of the entropies of all bits."""
        return (F.softplus(-params) + (-params).sigmoid() * params).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """Return sum_i p_i log(p_i / q_i) + (1 - p_i) log((1 - p_i) / (1 - q_i))."""
        on = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q))
        off = (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))
        return (on + off).sum(-1)

    def regret(self, params: Tensor, action: Tensor) -> Tensor:
        """Return the sum of the logits of all bits that differ from the mode."""
        return (params.abs() * (action != self.raw_mode(params))).sum(-1)


class GaussianHead(ActionHead):
    """Means, then log standard deviations, of a diagonal Gaussian; actions are clamped to their bounds."""

    kind: ClassVar[HeadKind] = "gaussian"
    neutral_kind = "deterministic"
    params_per_entry = 2

    def raw_mode(self, params: Tensor) -> Tensor:
        """Return the means."""
        return params[..., : len(self.low)]

    def raw_sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        """Return mean + std * standard normal noise."""
        mean, log_std = params.chunk(2, -1)
        return mean + log_std.exp() * torch.randn(mean.shape, generator=generator)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Return log N(action; mean, std) of an action before it is clamped or squashed."""
        mean, log_std = params.chunk(2, -1)
        return -(0.5 * ((action - mean) / log_std.exp()) ** 2 + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Return sum_i log_std_i + (1 + log 2 pi) / 2."""
        return (params.chunk(2, -1)[1] + 0.5 * (1 + math.log(2 * math.pi))).sum(-1)

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """Return sum_i log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2."""
        (p_mean, p_log_std), (q_mean, q_log_std) = p.chunk(2, -1), q.chunk(2, -1)
        # Ratios of standard deviations, since the square of a tiny one is 0 in float32.
        squares = (2 * (p_log_std - q_log_std)).exp() + ((p_mean - q_mean) * (-q_log_std).exp()) ** 2
        return (q_log_std - p_log_std + squares / 2 - 0.5).sum(-1)


class SquashedGaussianHead(GaussianHead):
    """Gaussian whose samples pass through tanh and are then scaled to the bounds (SAC, arXiv 1801.01290)."""

    kind = "squashed_gaussian"

    def bounded(self, action: Tensor) -> Tensor:
        """Return tanh(action) scaled to the bounds."""
        low, high = action.new_tensor(self.low), action.new_tensor(self.high)
        return low + (action.tanh() + 1) / 2 * (high - low)


class DeterministicHead(ActionHead):
    """Continuous actions, clamped to their bounds."""

    kind = neutral_kind = "deterministic"
    stochastic = False

    def raw_mode(self, params: Tensor) -> Tensor:
        """Return the action before it is clamped."""
        return params

    def certain(self, action: Tensor) -> Tensor:
        """Return the action."""
        return action

    def nll(self, params: Tensor, action: Tensor) -> Tensor:
        """Return the squared error, summed over the entries of an action."""
        return ((params - action) ** 2).sum(-1)


def _pick(values: Tensor, choice: Tensor) -> Tensor:
    return values.gather(-1, choice[..., None]).squeeze(-1)
