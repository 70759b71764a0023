"""Views of single agents: own wrappers for some agents, and the rest of the joint observation as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.envs.agent_views import wrappers_of_agents
from rldistill.envs.make import make_env
from rldistill.envs.spaces import observation_views, spec_from_env

from . import multi_agent_envs

MODULE = multi_agent_envs.__name__
CUE = [{"name": "PadObservation", "kwargs": {"segments": [[0, 0, 2], [1, 0, 0]]}}]
STACK = [{"name": "StackFrames", "kwargs": {"stack": 2}}]


def signals(views: dict[str, Any], make: str = "make_signals", **kwargs: Any) -> EnvConfig:
    return EnvConfig(f"pettingzoo:{MODULE}:{make}", kwargs, wrappers=(Wrapper("AgentViews", views),))


def entries(config: EnvConfig, action: list[int], steps: int) -> dict[str, list[float]]:
    env, spec = make_env(config), spec_from_env(config)
    obs, _ = env.reset(seed=1)
    for _ in range(steps):
        obs, *_ = env.step(np.array(action))
    return {key: part[0].flatten().tolist() for key, part in split_parts(torch.from_numpy(obs)[None], spec).items()}


def test_each_agent_observes_through_its_own_wrappers() -> None:
    plain = [entries(signals({}), [0, 1, 2], steps) for steps in (1, 2)]
    seen = entries(signals({"far": CUE, "near_1": STACK}), [0, 1, 2], 2)
    assert seen == {
        "near_0": plain[1]["near_0"],
        "near_1": plain[0]["near_1"] + plain[1]["near_1"],
        "far_0": plain[1]["far_0"][2:],
    }


def test_name_of_an_agent_precedes_its_type_and_all() -> None:
    shapes = {key: part.shape for key, part in spec_from_env(signals({"all": STACK, "near_1": []})).parts}
    assert shapes == {"near_0": (4,), "near_1": (2,), "far_0": (6,)}


def test_agent_does_not_observe_the_actions_of_others() -> None:
    last = [{"name": "LastAction"}]
    seen = entries(signals({"far_0": last, "near_1": last}), [0, 1, 2], 1)
    assert seen["far_0"][3:] == [0, 0, 1]
    assert seen["near_1"][2:] == [0, 1]


@pytest.mark.parametrize("container", ["dict", "tuple"])
def test_entries_of_an_agent_are_selected(container: str) -> None:
    own, kind = ("inner.own", "kind") if container == "dict" else ("0", "1")
    kwargs = {"filter_keys": [own]}
    config = signals({"near": [{"name": "FilterObservation", "kwargs": kwargs}]}, "make_rich", container=container)
    spec = spec_from_env(config)
    assert {*spec.entries} == {f"near_0.{own}", f"near_1.{own}", f"far_0.{own}", f"far_0.{kind}"}
    env = make_env(config)
    obs, _ = env.reset(seed=0)
    assert obs.shape == spec.obs_shape
    env.step(np.array([1, 2, 0, 0, 1, 1]))


def test_agent_that_left_is_masked_in_its_view() -> None:
    config = signals({"near": STACK}, leaves_at=4, alive=True)
    seen = entries(config, [0, 0, 0], 5)
    assert seen["alive"] == [1, 0, 1]
    assert seen["near_1"] == [0] * 4
    assert seen["action_mask"] == [1, 1, 1, 0, 1, 1, 1]


def test_teacher_observes_all_that_the_students_do_not() -> None:
    views = Views(student=(Wrapper("AgentViews", {"far": CUE}),))
    both = observation_views(EnvConfig(f"pettingzoo:{MODULE}:make_signals", {"state": True}, views=views))
    assert both.teacher.entries["far_0"].shape == (3,)
    assert both.student.entries["far_0"].shape == (1,)
    assert both.student.agents == both.teacher.agents


def test_a_name_stands_for_a_wrapper_of_an_agent() -> None:
    assert wrappers_of_agents({"far": ["StackFrames"]}) == {"far": (Wrapper("StackFrames"),)}


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"fra_0": CUE}, r"AgentViews: there is no agent 'fra_0'\. Did you mean 'far_0'\?$"),
        ({"far_0": "StackFrames"}, r"AgentViews\.far_0: found 'StackFrames', expected a list"),
        (
            {"far_0": [7]},
            r"AgentViews\.far_0\.0: found 7, expected the name of a wrapper, or its name and kwargs\. List",
        ),
        ({"far_0": [{"nam": "StackFrames"}]}, r"AgentViews\.far_0\.0\.nam: unknown key"),
        ({"far_0": [{"name": "StackFrame"}]}, r"there is no 'StackFrame' .* Did you mean 'StackFrames'\?$"),
        ({"near": CUE}, r"PadObservation does not accept .*: expected those of \(2,\) values, found 3$"),
        ({"far": [{"name": "RescaleAction", "kwargs": {"min_action": 0, "max_action": 1}}]}, "RescaleAction"),
        ({"far": [{"name": "FrameSkip", "kwargs": {"skip": 2}}]}, "takes more than one step at a time"),
    ],
)
def test_wrong_views_are_refused_in_one_line(views: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        entries(signals(views), [0, 0, 0], 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env_id", "before", "message"),
    [
        ("CartPole-v1", (), "AgentViews: the environment has one agent"),
        (f"pettingzoo:{MODULE}:make_signals", (Wrapper("FlattenObservation"),), "has no entry of the agent near_0"),
    ],
)
def test_views_of_agents_need_agents(env_id: str, before: tuple[Wrapper, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec_from_env(EnvConfig(env_id, wrappers=(*before, Wrapper("AgentViews", {"all": []}))))
