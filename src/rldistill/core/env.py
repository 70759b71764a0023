"""Environments and their wrappers, by name."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any, Literal

from rldistill.core.fields import validated_dataclass
from rldistill.core.spec import Views, Wrapper

Side = Literal["student", "teacher"]
SIDES: tuple[Side, ...] = ("student", "teacher")
CHANNELS_FIRST = Wrapper("ChannelsFirst")


@validated_dataclass
class EnvConfig:
    """Environment and its wrappers.

    Attributes:
        id: Gymnasium id, or `module:function`, which returns a `gymnasium.Env`.
        kwargs: Keyword arguments of the environment.
        wrappers: Wrappers around the environment, innermost first.
        views: Further wrappers for each side, if teacher and student observe differently.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    wrappers: tuple[Wrapper, ...] = ()
    views: Views | None = None

    def view_of(self, side: Side) -> EnvConfig:
        """Return the environment as one side observes it."""
        if self.views is None:
            return self
        return replace(self, wrappers=self.wrappers + getattr(self.views, side), views=None)
