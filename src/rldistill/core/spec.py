"""Environments by name, and specifications of observations, actions and frame pipelines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from rldistill.core.errors import SpecMismatchError, error_text, short_repr
from rldistill.core.fields import OPTIONAL, Stored, invalid, validated_dataclass
from rldistill.core.heads import HEADS, MASK, ActionHead, HeadKind, Size
from rldistill.core.worlds import Worlds

Obs = Tensor | Mapping[str, Tensor]
Side = Literal["student", "teacher"]
MAX_EPISODE_STEPS = 50_000
"""Length at which an episode of an evaluation counts as endless."""
SIDES: tuple[Side, ...] = ("student", "teacher")
ALIVE = "alive"
"""Entry of a joint observation with the agents that are still there."""


def _require_dtype(name: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"expected a dtype, found {name!r}")
    return name


def _require_json(kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(kwargs, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:  # no file could store them
        raise ValueError(
            f"found {short_repr(kwargs)}, expected text, finite numbers, and lists and mappings of these, as in JSON "
            f"({error_text(error)}). To pass others, name a function (module:function) that makes it with them."
        ) from None
    return kwargs


Arguments = Annotated[dict[str, Any], AfterValidator(_require_json)]
"""Keyword arguments of a class or function, as a file stores them."""
Dtype = Annotated[str, AfterValidator(_require_dtype)]
Head = Annotated[ActionHead, Stored(lambda kind, **sizes: HEADS[kind](**sizes), kind=HeadKind)]


@dataclass(frozen=True)
class FramePipeline:
    """Preprocessing of frames (Mnih 2015); a `skip` of two numbers is a range to sample from, the second excluded."""

    height: Size = 84
    width: Size = 84
    stack: Size = 4
    skip: Size | tuple[Size, Size] = 4
    max_pool: bool = True
    grayscale: bool = True
    padding: Literal["zero", "repeat"] = "zero"


@validated_dataclass
class Wrapper:
    """Name of a wrapper, of `gymnasium.wrappers` or `module:Class`, and its keyword arguments."""

    name: str
    kwargs: Arguments = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.name} {short_repr(self.kwargs)}" if self.kwargs else self.name


def _named(value: Any) -> Any:
    """Return the fields of a wrapper that is given by its name alone."""
    if not isinstance(value, str | Mapping | Wrapper):
        raise invalid(f"found {short_repr(value)}, expected the name of a wrapper, or its name and kwargs")
    return {"name": value} if isinstance(value, str) else value


WrapperField = Annotated[Wrapper, BeforeValidator(_named, json_schema_input_type=str | Wrapper)]
"""Wrapper, or the name of a wrapper without arguments."""


@validated_dataclass
class Views:
    """Observation wrappers of the teacher and of the student, which act in one environment.

    Wrappers that change actions, rewards or episodes belong to both, in `EnvConfig.wrappers`. With many agents, the
    wrapper `AgentViews` has those of each agent or type of agents.
    """

    teacher: tuple[WrapperField, ...] = ()
    student: tuple[WrapperField, ...] = ()


@validated_dataclass
class EnvConfig:
    """Environment and its wrappers.

    Attributes:
        id: Gymnasium id, or `module:function`, which returns a `gymnasium.Env`.
        kwargs: Keyword arguments of the environment.
        wrappers: Wrappers around the environment, innermost first.
        views: Further wrappers for each side, if teacher and student observe differently.
        worlds: Keyword arguments, or else attributes, of the environment that each episode draws from its seed: from a
            range `[low, high]` or from `{values: [...]}`. A number replaces a number, and multiplies an array.
    """

    id: str
    kwargs: Arguments = field(default_factory=dict, hash=False)
    wrappers: tuple[WrapperField, ...] = ()
    views: Views | None = None
    worlds: Worlds = field(default_factory=dict, hash=False)

    def view_of(self, side: Side) -> EnvConfig:
        """Return the environment as one side observes it."""
        if self.views is None:
            return self
        return replace(self, wrappers=self.wrappers + getattr(self.views, side), views=None)


MAX_OBS_VALUES = 1 << 26
"""Limit of an observation: a file could name a space that fills the memory."""
CHANNELS_FIRST = Wrapper("ChannelsFirst")
TEACHER_VIEWS = "TeacherViews"
"""Name of the wrapper whose keyword arguments are the wrappers of several teachers by name."""
BYTES = ("uint8", "int8")
"""Dtypes of pictures and of bits, which are stored as bytes."""


@dataclass(frozen=True)
class ObsPart:
    """One entry of an observation; integers with sizes `nvec` become one-hot vectors."""

    shape: tuple[Size, ...]
    dtype: Dtype
    nvec: tuple[Size, ...] = ()

    @property
    def width(self) -> int:
        """The number of network inputs for it."""
        return sum(self.nvec) if self.nvec else math.prod(self.shape)

    @property
    def is_picture(self) -> bool:
        """True if it has the shape of a picture or of the planes of a board."""
        return len(self.shape) == 3 and not self.nvec

    @property
    def packed_dtype(self) -> str:
        """The dtype of the entry in a dict with pictures."""
        return self.dtype if self.dtype in BYTES else "float32"


Parts = tuple[tuple[str, Annotated[ObsPart, Stored()]], ...]
"""Entries of a dict observation by name."""


@dataclass(frozen=True)
class AgentSpec:
    """One of many agents, with entries of observations that begin with `name`, and `num_parts` parts of actions.

    Attributes:
        team: True if the agent is in the team whose reward counts.
    """

    name: str
    type: str
    num_parts: Size
    team: bool = field(default=True, metadata=OPTIONAL)

    @property
    def keys(self) -> tuple[str, str, str]:
        """The names by which settings may mean the agent, the most specific first."""
        return self.name, self.type, "all"


@dataclass(frozen=True)
class PolicySpec:
    """Input and output of a policy.

    Attributes:
        obs_shape: the shape of one observation.
        obs_dtype: its NumPy dtype.
        head: the meaning of the output.
        frames: the preprocessing of frames, if known.
        nvec: the sizes of the integers in an observation, which become one-hot vectors.
        parts: the entries of a dict observation, in the order of its space; policies take them as one array, a float32
            vector or, if one is a picture of bytes or bits, the bytes of all entries (`join_parts`, `split_parts`).
        view: the wrappers of the environment that produce these observations.
        env_kwargs: the keyword arguments of that environment.
        agents: the agents of a joint policy, in the order of their parts of an action; none for a single agent.
        members: the names of a committee's members and the kinds of their heads; none for a single policy.
    """

    obs_shape: tuple[Size, ...]
    obs_dtype: Dtype
    head: Head
    frames: Annotated[FramePipeline, Stored()] | None = None
    nvec: tuple[Size, ...] = ()
    parts: Parts = ()
    view: tuple[Annotated[Wrapper, Stored()], ...] = ()
    env_kwargs: tuple[tuple[str, bool | int | float], ...] = ()
    agents: tuple[Annotated[AgentSpec, Stored()], ...] = field(default=(), metadata=OPTIONAL)
    members: tuple[tuple[str, HeadKind], ...] = field(default=(), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if max(math.prod(self.obs_shape), sum(part.width for part in self.entries.values())) > MAX_OBS_VALUES:
            raise SpecMismatchError(f"obs_shape: more than {MAX_OBS_VALUES:,} values. Use a smaller space.")
        (size, dtype), found = joined_layout(self.parts), (self.obs_shape, self.obs_dtype)
        if self.parts and found not in (((size,), dtype), (self.flat_shape, "float32")):
            expected = f"{dtype} of {(size,)} for the entries of a dict"
            raise SpecMismatchError(f"obs_shape: expected {expected}, found {self.obs_dtype} of {self.obs_shape}")

    @classmethod
    def from_parts(cls, parts: Parts, head: ActionHead) -> PolicySpec:
        """Return the spec of a dict observation with these entries."""
        size, dtype = joined_layout(parts)
        return cls((size,), dtype, head, parts=parts)

    @cached_property
    def entries(self) -> dict[str, ObsPart]:
        """The parts by name; an observation that is not a dict has one part with an empty name."""
        return dict(self.parts) or {"": ObsPart(self.obs_shape, self.obs_dtype, self.nvec)}

    @property
    def has_pictures(self) -> bool:
        """True if an entry of a dict is a picture."""
        return any(part.is_picture for _, part in self.parts)

    @property
    def flat_shape(self) -> tuple[int, ...]:
        """The shape of an observation; of a dict, that of the vector of all its values."""
        return (sum(math.prod(part.shape) for _, part in self.parts),) if self.parts else self.obs_shape

    @property
    def member_heads(self) -> list[ActionHead]:
        """The heads of a committee's members."""
        return [self.head.as_kind(kind) for _, kind in self.members]

    @property
    def unmasked(self) -> PolicySpec:
        """The spec without the action mask."""
        if MASK not in self.entries:
            return self
        rest = {key: part for key, part in self.parts if key != MASK}
        whole = PolicySpec.from_parts(tuple(rest.items()), self.head)
        if [*rest] == ["obs"]:  # the name that `ActionMask` gives to an observation that is not a dict
            part = rest["obs"]
            whole = replace(whole, obs_shape=part.shape, obs_dtype=part.dtype, nvec=part.nvec, parts=())
        return replace(whole, view=self.view, env_kwargs=self.env_kwargs, agents=self.agents, members=self.members)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as it is stored in `policy.json` and `manifest.json`."""
        document = asdict(self) | {"head": self.head.to_json()}
        document["agents"] = [
            {key: value for key, value in agent.items() if (key, value) != ("team", True)}
            for agent in document["agents"]
        ]
        return {key: value for key, value in document.items() if value or key not in ("agents", "members")}

    def transposed_images(self, other: PolicySpec) -> tuple[str, ...]:
        """Return the names of images with channels first here and channels last in `other`."""
        if other.frames is not None:
            return ()
        shapes = [
            (key, part.shape, other.entries[key].shape) for key, part in self.entries.items() if key in other.entries
        ]
        return tuple(key for key, a, b in shapes if len(b) == 3 and a != b and a == (b[2], *b[:2]))

    def require_same_input(self, other: PolicySpec, name: str, other_name: str) -> None:
        """Raise SpecMismatchError unless both specs have the same observations and the same actions.

        Float dtypes are interchangeable, since all policies compute in float32, and so are both forms of a dict.
        """
        pairs: list[tuple[str, Any, Any]] = []
        if self.agents and other.agents:
            own, others = ([agent.name for agent in spec.agents] for spec in (self, other))
            pairs = [("number of agents", len(own), len(others)), ("names of agents", own, others)]
        if not (self.parts and _parts_as_float32(self.parts) == _parts_as_float32(other.parts)):
            pairs += [
                ("observation shape", self.obs_shape, other.obs_shape),
                ("observation dtype", _as_float32(self.obs_dtype), _as_float32(other.obs_dtype)),
            ]
        pairs += [
            ("number of values", self.nvec, other.nvec),
            ("entries of the observation", _parts_as_float32(self.parts), _parts_as_float32(other.parts)),
            ("kind of action", self.head.neutral_kind, other.head.neutral_kind),
            ("number of actions", self.head.nvec, other.head.nvec),
            ("number of actions", len(self.head.low), len(other.head.low)),
        ]
        if self.frames is not None and other.frames is not None:  # not every file of a teacher contains them
            frames = asdict(other.frames)
            pairs += [(f"{key} of the frame pipeline", value, frames[key]) for key, value in vars(self.frames).items()]
        for quantity, a, b in pairs:
            if a != b:
                raise SpecMismatchError(
                    f"{name} and {other_name} do not fit: {quantity} is {short_repr(a)} for {name}, {short_repr(b)} "
                    f"for {other_name}. {_remedy(quantity)}"
                )
        for end in ("low", "high"):
            bounds = zip(getattr(self.head, end), getattr(other.head, end), strict=True)
            for number, (a, b) in enumerate(bounds):
                if not math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-8):  # SB3 stores bounds as rounded text
                    raise SpecMismatchError(
                        f"{name} and {other_name} do not fit: action {number} is bounded by {a:g} for {name}, by {b:g} "
                        f"for {other_name}. {_remedy('action')}"
                    )


def _remedy(quantity: str) -> str:
    for noun in ("agent", "action"):
        if noun in quantity:
            return f"Use two with the same {noun}s."
    return "Make the observations equal (env.wrappers, env.views, env.kwargs), or replace one of the two."


def _as_float32(dtype: str) -> str:
    return "float32" if dtype in ("float16", "float64") else dtype


def _parts_as_float32(parts: Parts) -> Parts:
    return tuple((key, replace(part, dtype=_as_float32(part.dtype))) for key, part in parts)


def joined_layout(parts: Parts) -> tuple[int, str]:
    """Return length and dtype of the array that holds all entries of a dict observation."""
    packed = any(part.is_picture and part.dtype in BYTES for _, part in parts)
    return sum(part_sizes(parts, packed)), "uint8" if packed else "float32"


def part_sizes(parts: Parts, packed: bool) -> list[int]:
    """Return the length of each entry in the array of all, which has bytes if it is `packed`."""
    return [math.prod(part.shape) * (4 if packed and part.dtype not in BYTES else 1) for _, part in parts]
