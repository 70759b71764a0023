"""What every stage speaks: observations, heads, outputs, policies, batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from rldistill.errors import SpecMismatchError, shown

Obs = Tensor | Mapping[str, Tensor]
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


@dataclass(frozen=True)
class FramePipeline:
    """How frames become an observation; two policies with different pipelines see different things.

    A `skip` of two numbers is drawn anew at each step, from the first to just below the second.
    """

    height: int = 84
    width: int = 84
    stack: int = 4
    skip: int | tuple[int, int] = 4
    max_pool: bool = True
    grayscale: bool = True
    padding: Literal["zero", "repeat"] = "zero"


@dataclass(frozen=True)
class Wrapper:
    """A wrapper of `gymnasium.wrappers` by its name, or `module:Class`, and its keyword arguments."""

    name: str
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.name} {shown(self.kwargs)}" if self.kwargs else self.name

    @property
    def modest(self) -> bool:
        """Whether its arguments are few, short and of a size that a policy could have needed."""
        return len(self.kwargs) <= 8 and all(_is_modest(value) for value in self.kwargs.values())


def _is_modest(value: Any, most: float = 1e5) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 4_096 and all(_is_modest(item, 4_096) for item in value)
    if isinstance(value, str):
        return len(value) <= 64
    return value is None or (isinstance(value, int | float) and not abs(value) > most)


@dataclass(frozen=True)
class Views:
    """What is wrapped around an environment for the teacher and for the student, each beside the other.

    These wrappers change the observation and nothing else; what changes actions, rewards or episodes is for both.
    """

    teacher: tuple[Wrapper, ...] = ()
    student: tuple[Wrapper, ...] = ()


@dataclass(frozen=True)
class ObsPart:
    """One entry of an observation; `nvec` are the sizes of the integers in it that are fed as one-hot vectors."""

    shape: tuple[int, ...]
    dtype: str
    nvec: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Numbers that a network is fed for it."""
        return sum(self.nvec) if self.nvec else math.prod(self.shape)


@dataclass(frozen=True)
class PolicySpec:
    """What a policy takes and gives.

    Attributes:
        obs_shape: of one observation.
        obs_dtype: by numpy's name.
        head: what comes out.
        frames: how frames became the observation, as far as that is known.
        nvec: sizes of the integers in an observation that are fed as one-hot vectors.
        parts: the entries of a dict observation, in the order of its space; it is passed on as one vector, in which
            they follow one another.
        view: what has to be wrapped around the bare environment for these observations to come out of it.
        env_kwargs: what that environment has to be made with.
    """

    obs_shape: tuple[int, ...]
    obs_dtype: str
    head: ActionHead
    frames: FramePipeline | None = None
    nvec: tuple[int, ...] = ()
    parts: tuple[tuple[str, ObsPart], ...] = ()
    view: tuple[Wrapper, ...] = ()
    env_kwargs: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of_parts(cls, parts: tuple[tuple[str, ObsPart], ...], head: ActionHead) -> PolicySpec:
        """The spec of a dict observation with these entries."""
        return cls((sum(math.prod(part.shape) for _, part in parts),), "float32", head, parts=parts)

    @property
    def entries(self) -> dict[str, ObsPart]:
        """The parts by name; of an observation that is no dict, itself under an empty name."""
        return dict(self.parts) or {"": ObsPart(self.obs_shape, self.obs_dtype, self.nvec)}

    @property
    def unmasked(self) -> PolicySpec:
        """What a policy takes that is not shown which actions are legal; of a dict, what else is in it."""
        if MASK not in self.entries:
            return self
        rest = {key: part for key, part in self.parts if key != MASK}
        whole = PolicySpec.of_parts(tuple(rest.items()), self.head)
        if [*rest] == ["obs"]:  # what `ActionMask` calls an observation that was no dict
            part = rest["obs"]
            whole = replace(whole, obs_shape=part.shape, obs_dtype=part.dtype, nvec=part.nvec, parts=())
        return replace(whole, view=self.view, env_kwargs=self.env_kwargs)

    @classmethod
    def from_json(cls, value: Any) -> PolicySpec:
        """The spec that `dataclasses.asdict` made `value` of; raises KeyError or TypeError if it did not."""

        def tuples(fields: dict[str, Any]) -> dict[str, Any]:
            return {key: tuple(item) if isinstance(item, list) else item for key, item in fields.items()}

        fields = tuples(value)
        fields["head"] = ActionHead(**tuples(fields["head"]))
        fields["frames"] = FramePipeline(**tuples(fields["frames"])) if fields["frames"] is not None else None
        fields["parts"] = tuple((key, ObsPart(**tuples(part))) for key, part in fields.get("parts", ()))
        fields["env_kwargs"] = tuple((str(key), item) for key, item in fields.get("env_kwargs", ()))
        fields["view"] = tuple(Wrapper(**wrapper) for wrapper in fields.get("view", ()))
        return cls(**fields)

    def turned_round(self, other: PolicySpec) -> tuple[str, ...]:
        """The entries that are pictures with channels first here and with channels last in `other`."""
        if other.frames is not None:
            return ()
        shapes = [
            (key, part.shape, other.entries[key].shape) for key, part in self.entries.items() if key in other.entries
        ]
        return tuple(key for key, a, b in shapes if len(b) == 3 and a != b and a == (b[2], *b[:2]))

    def require_same_input(self, other: PolicySpec, mine: str, others: str) -> None:
        """Raise SpecMismatchError unless both take the same observations and act in the same space.

        Floats of one length are as good as those of another, since all policies compute in float32.
        """
        pairs: list[tuple[str, Any, Any]] = [
            ("observation shape", self.obs_shape, other.obs_shape),
            ("observation dtype", _as_float32(self.obs_dtype), _as_float32(other.obs_dtype)),
            ("number of values", self.nvec, other.nvec),
            ("entries of the observation", _parts_as_float32(self.parts), _parts_as_float32(other.parts)),
            ("kind of action", self.head.neutral.kind, other.head.neutral.kind),
            ("number of actions", self.head.nvec, other.head.nvec),
            ("number of actions", len(self.head.low), len(other.head.low)),
        ]
        if self.frames is not None and other.frames is not None:  # an agent's file need not tell
            pairs += [
                (
                    f"{part.name} of the frame pipeline",
                    getattr(self.frames, part.name),
                    getattr(other.frames, part.name),
                )
                for part in fields(FramePipeline)
            ]
        for what, a, b in pairs:
            if a != b:
                raise SpecMismatchError(
                    f"{mine} and {others} do not fit: {what} is {shown(a)} for {mine}, {shown(b)} for {others}"
                )
        for end in ("low", "high"):
            bounds = zip(getattr(self.head, end), getattr(other.head, end), strict=True)
            for number, (a, b) in enumerate(bounds):
                if not math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-8):  # texts of bounds are rounded
                    raise SpecMismatchError(
                        f"{mine} and {others} do not fit: action {number} is bounded by {a:g} for {mine}, by {b:g} for "
                        f"{others}"
                    )


def _as_float32(dtype: str) -> str:
    return "float32" if dtype in ("float16", "float64") else dtype


def _parts_as_float32(parts: tuple[tuple[str, ObsPart], ...]) -> tuple[tuple[str, ObsPart], ...]:
    return tuple((key, replace(part, dtype=_as_float32(part.dtype))) for key, part in parts)


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy says of a batch of observations."""

    head: ActionHead
    params: Tensor
    value: Tensor | None = None
    features: Tensor | None = None
    mask: Tensor | None = None

    def masked(self, mask: Tensor) -> PolicyOutput:
        """The same with actions that are not legal ruled out: they are never chosen, and no loss sees them.

        Of `[..., sum(head.choices)]`: bits have two numbers each, and what is ruled out stands in their logits alone.
        """
        legal = mask.bool()
        if self.head.kind == "bernoulli":
            off, on = legal[..., ::2], legal[..., 1::2]
            return replace(self, params=self.params.masked_fill(~on, ILLEGAL).masked_fill(~off, -ILLEGAL))
        return replace(self, params=self.params.masked_fill(~legal, ILLEGAL), mask=legal)

    def at(self, rows: Tensor) -> PolicyOutput:
        """What is said of some observations of a batch, without features."""
        parts = (None if part is None else part[rows] for part in (self.value, None, self.mask))
        return PolicyOutput(self.head, self.params[rows], *parts)

    def mode(self) -> Tensor:
        """The most likely, highest-valued or mean action: `[...]` for one integer, `[..., A]` otherwise."""
        kind, params = self.head.kind, self.params
        if self.mask is not None:
            params = params.masked_fill(~self.mask, -torch.inf)
        if kind in ("categorical", "q_values"):
            return params.argmax(-1)
        if kind == "multi_categorical":
            return torch.stack([part.argmax(-1) for part in params.split_with_sizes(self.head.nvec, -1)], -1)
        if kind == "bernoulli":
            return (params > 0).long()
        mean = params[..., : len(self.head.low)]
        return self.bounded(mean)

    def sample(self, generator: torch.Generator) -> Tensor:
        """An action drawn from the policy; of `q_values` and `deterministic` heads, the mode."""
        kind, params = self.head.kind, self.params
        if kind in ("q_values", "deterministic"):
            return self.mode()
        if self.mask is not None:
            params = params.masked_fill(~self.mask, -torch.inf)
        if kind == "categorical":
            return _gumbel_argmax(params, generator)
        if kind == "multi_categorical":
            return torch.stack(
                [_gumbel_argmax(part, generator) for part in params.split_with_sizes(self.head.nvec, -1)], -1
            )
        if kind == "bernoulli":
            return (torch.rand(params.shape, generator=generator) < params.sigmoid()).long()
        return self.bounded(self.draw(generator))

    def draw(self, generator: torch.Generator) -> Tensor:
        """A draw before it is brought within the bounds of the action: of a Gaussian; elsewhere the action itself."""
        if "gaussian" not in self.head.kind:
            return self.sample(generator)
        mean, log_std = self.params.chunk(2, -1)
        return mean + log_std.exp() * torch.randn(mean.shape, generator=generator)

    def bounded(self, action: Tensor) -> Tensor:
        """A draw as an action: clamped, or squashed into the bounds; a discrete one as it is."""
        if self.head.discrete:
            return action
        low, high = action.new_tensor(self.head.low), action.new_tensor(self.head.high)
        if self.head.kind == "squashed_gaussian":
            return low + (action.tanh() + 1) / 2 * (high - low)
        return action.clamp(low, high)


def _gumbel_argmax(logits: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(logits.shape, generator=generator).clamp_min(1e-20)
    return (logits - (-uniform.log()).log()).argmax(-1)


class Policy(Protocol):
    """A teacher is a policy, a student is a policy."""

    @property
    def spec(self) -> PolicySpec: ...

    def initial_state(self, batch_size: int) -> Tensor | None: ...

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]: ...


@dataclass(frozen=True)
class Seeing:
    """A policy that is shown what `look` makes of each batch of observations."""

    policy: Policy
    look: Callable[[Tensor], Tensor]

    @property
    def spec(self) -> PolicySpec:
        """The policy's."""
        return self.policy.spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """The policy's."""
        return self.policy.initial_state(batch_size)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What the policy says of what it is shown."""
        assert isinstance(obs, Tensor)
        return self.policy(self.look(obs), state)


@dataclass(frozen=True)
class Batch:
    """Transitions with the teacher's labels; leading dimensions `[B]`, or `[T, B]` for sequences."""

    obs: Obs
    action: Tensor
    reward: Tensor
    return_to_go: Tensor
    terminated: Tensor
    truncated: Tensor
    teacher: PolicyOutput
    next_teacher: PolicyOutput
    next_obs: Obs | None
    weight: Tensor
    episode: Tensor
    step: Tensor
    actor: Tensor
    task: Tensor
