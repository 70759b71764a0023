"""Specifications of observations, actions and frame pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from torch import Tensor

from rldistill.core.errors import SpecMismatchError, shown
from rldistill.core.heads import MASK, ActionHead

Obs = Tensor | Mapping[str, Tensor]


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

    def to_json(self) -> dict[str, Any]:
        """Return the spec as it is stored in `policy.json` and `manifest.json`."""
        return asdict(self) | {"head": self.head.to_json()}

    @classmethod
    def from_json(cls, value: Any) -> PolicySpec:
        """Return the spec that `to_json` wrote; raise KeyError, TypeError or SpecMismatchError for other values."""

        def tuples(fields: dict[str, Any]) -> dict[str, Any]:
            return {key: tuple(item) if isinstance(item, list) else item for key, item in fields.items()}

        fields = tuples(value)
        fields["head"] = ActionHead.from_json(fields["head"])
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
            ("kind of action", self.head.neutral_kind, other.head.neutral_kind),
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
