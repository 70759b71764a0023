"""Specifications of policies that fit an environment."""

import math
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import gymnasium
import gymnasium.wrappers
import numpy as np
from gymnasium import spaces

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead, BernoulliHead, CategoricalHead, DeterministicHead, MultiCategoricalHead
from rldistill.core.policy import Policy
from rldistill.core.spec import (
    CHANNELS_FIRST,
    SIDES,
    TEACHER_VIEWS,
    EnvConfig,
    FramePipeline,
    PolicySpec,
    Views,
    Wrapper,
)
from rldistill.envs.atari import frame_pipeline, is_atari, make_atari, preprocessed_id, preprocessing
from rldistill.envs.entries import FlatDict, obs_part, obs_parts
from rldistill.envs.make import make_env
from rldistill.envs.multi_agent import JointEnv
from rldistill.envs.views import ObservationViews

OLDER_OBSERVATIONS: dict[tuple[str, int, int], list[list[int]]] = {
    # Since version 5 the values of the world, which are 0, are left out. Versions 2 and 3 had contact forces of 0.
    ("Ant", 111, 105): [[27, 84, 78]],
    ("Ant", 111, 27): [[27, 84, 0]],
    ("Humanoid", 376, 348): [[45, 10, 0], [130, 6, 0], [78, 6, 0], [17, 84, 78]],
    ("HumanoidStandup", 376, 348): [[45, 10, 0], [130, 6, 0], [78, 6, 0], [17, 84, 78]],
}
"""Segments of PadObservation by the environment, and the sizes of observations of older versions and of version 5."""


def adapt_env(env: EnvConfig, teacher: Policy) -> EnvConfig:
    """Return the environment with the keyword arguments and wrappers that the teacher was trained with.

    Keyword arguments of `env` take precedence, and wrappers that are there already are not repeated. Images become
    channels first if the teacher requires it. A bare `GameNoFrameskip-v4` becomes `ALE/Game-v5` without sticky actions
    if the teacher takes its frames.
    """
    env = replace(env, kwargs={**dict(teacher.spec.env_kwargs), **env.kwargs})
    game, frames = preprocessed_id(env.id), teacher.spec.frames
    if game is not None and frames is not None and not env.wrappers and env.views is None:
        env = replace(env, id=game, kwargs={**preprocessing(frames), **env.kwargs})
    view = teacher.spec.view
    if CHANNELS_FIRST not in view and teacher.spec.transposed_images(spec_from_env(env.view_of("teacher"))):
        view = (*view, CHANNELS_FIRST)
    if not view and len(teacher.spec.obs_shape) == 1:
        shape = spec_from_env(env.view_of("teacher")).obs_shape
        sizes = (*teacher.spec.obs_shape, *shape)
        segments = OLDER_OBSERVATIONS.get((re.sub(r"-v\d+$", "", env.id), *sizes)) if len(sizes) == 2 else None
        view = () if segments is None else (Wrapper("PadObservation", {"segments": segments}),)
    wrappers = env.view_of("teacher").wrappers
    if wrappers[len(wrappers) - len(view) :] == view:
        return env
    if env.views is None and any(wrapper.name == TEACHER_VIEWS for wrapper in view):
        return replace(env, views=Views(teacher=view))  # the student observes the environment as it is
    if env.views is None:
        return replace(env, wrappers=env.wrappers + view)
    return replace(env, views=replace(env.views, teacher=env.views.teacher + view))


def observation_views(config: EnvConfig) -> ObservationViews:
    """Return the views that student and teacher have of the environment's observations."""
    student, teacher = (spec_from_env(config.view_of(side)) for side in SIDES)
    return ObservationViews(student, teacher, packed=config.views is not None)


@lru_cache
def spec_from_env(config: EnvConfig) -> PolicySpec:
    """Return the specification of a policy for this environment, with a neutral head; of two views, the student's."""
    config = config.view_of("student")
    if is_atari(config.id):
        vector = make_atari(config, 1, 1)
        spec = spec_from_spaces(config.id, vector.single_observation_space, vector.single_action_space)
        vector.close()
        return replace(spec, frames=frame_pipeline(config.kwargs))
    env = make_env(config)
    inner = env.env  # without the boundary
    obs_space = (inner.env if isinstance(inner, FlatDict) else env).observation_space
    env.close()
    agents = env.unwrapped.agents if isinstance(env.unwrapped, JointEnv) else ()
    return replace(spec_from_spaces(config.id, obs_space, env.action_space), frames=_frames(inner), agents=agents)


def spec_from_spaces(env_id: str, obs_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> PolicySpec:
    """Return the specification for these spaces; raise ConfigError for spaces that are not supported."""
    head: ActionHead
    if isinstance(action_space, spaces.Discrete):
        head = CategoricalHead((int(action_space.n),))
    elif isinstance(action_space, spaces.MultiDiscrete):
        head = MultiCategoricalHead(tuple(action_space.nvec.ravel().tolist()))
    elif isinstance(action_space, spaces.MultiBinary):
        head = BernoulliHead((math.prod(action_space.shape),))
    elif isinstance(action_space, spaces.Box):
        if not math.prod(action_space.shape):
            raise ConfigError(f"env.id: {env_id} has actions of no numbers, {action_space}. Give it an action.")
        low, high = (tuple(bound.ravel().tolist()) for bound in (action_space.low, action_space.high))
        head = DeterministicHead(low=low, high=high)
    else:
        raise ConfigError(
            f"env.id: {env_id} has actions {action_space}. Use Box, Discrete, MultiDiscrete or MultiBinary."
        )
    if isinstance(obs_space, spaces.Dict | spaces.Tuple):
        return PolicySpec.from_parts(obs_parts(env_id, obs_space), head)
    part = obs_part(env_id, obs_space)
    return PolicySpec(part.shape, part.dtype, head, nvec=part.nvec)


def action_space(head: ActionHead) -> spaces.Space[Any]:
    """Return the space of the actions of a head, the reverse of `spec_from_spaces`."""
    if head.single_choice:
        return spaces.Discrete(head.nvec[0])
    if isinstance(head, BernoulliHead):
        return spaces.MultiBinary(head.nvec[0])
    if head.discrete:
        return spaces.MultiDiscrete([*head.nvec])
    return spaces.Box(np.array(head.low, np.float32), np.array(head.high, np.float32))


def _frames(env: gymnasium.Env[Any, Any]) -> FramePipeline | None:
    """Return the pipeline that stacks gray frames; None for other observations, which are stored as they are."""
    space = env.observation_space
    if not isinstance(env, gymnasium.wrappers.FrameStackObservation) or not isinstance(space, spaces.Box):
        return None
    if space.dtype != np.uint8 or len(space.shape) != 3 or env.padding_type not in ("reset", "zero"):
        return None
    skip = env.spec.kwargs.get("frameskip", 1) if env.spec is not None else 1
    max_pool, inner = False, env.env
    while isinstance(inner, gymnasium.Wrapper):
        if isinstance(inner, gymnasium.wrappers.AtariPreprocessing):
            skip, max_pool = inner.frame_skip, inner.frame_skip > 1
        inner = inner.env
    padding: Literal["zero", "repeat"] = "zero" if env.padding_type == "zero" else "repeat"
    stack, height, width = space.shape
    skip = tuple(skip) if isinstance(skip, list) else skip
    return FramePipeline(height, width, stack, skip, max_pool, True, padding)
