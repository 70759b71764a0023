"""Joint environments: spaces, rewards, agents that leave, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.spec import AgentSpec, EnvConfig
from rldistill.data.manifest import Manifest
from rldistill.envs.make import make_env
from rldistill.envs.multi_agent import agent_type
from rldistill.envs.spaces import spec_from_env

from . import multi_agent_envs
from .multi_agent_envs import Signals

MODULE = multi_agent_envs.__name__
ID = f"pettingzoo:{MODULE}:make_signals"


def joint(**kwargs: Any) -> EnvConfig:
    return EnvConfig(ID, kwargs)


def play(env: Any, seed: int = 0) -> list[tuple[Any, ...]]:
    obs, _ = env.reset(seed=seed)
    steps: list[tuple[Any, ...]] = [(obs,)]
    while True:
        steps.append(env.step(np.ones(3, env.action_space.dtype)))
        if steps[-1][2] or steps[-1][3]:
            return steps


def test_spec_has_the_entries_and_action_parts_of_all_agents() -> None:
    spec = spec_from_env(joint())
    assert spec.agents == (AgentSpec("near_0", "near", 1), AgentSpec("near_1", "near", 1), AgentSpec("far_0", "far", 1))
    assert {key: part.shape for key, part in spec.parts} == {"far_0": (3,), "near_0": (2,), "near_1": (2,)}
    assert spec.head.nvec == (2, 2, 3)


def test_team_of_an_agent_is_stored_where_it_has_no_part_in_the_reward() -> None:
    spec = spec_from_env(joint(own_rewards=True, team="far"))
    assert {agent.name: agent.team for agent in spec.agents} == {"near_0": False, "near_1": False, "far_0": True}
    document = spec.to_json()
    assert ["team" in agent for agent in document["agents"]] == [True, True, False]
    stored = {"schema": 3, "env": {"id": ID}, "spec": document, "teacher_spec": None, "rounds": {}, "blocks": []}
    assert Manifest.parse(stored | {"folder": "."}, Path("manifest.json")).spec == spec


def test_boxes_are_concatenated() -> None:
    env = make_env(joint(continuous=True))
    assert env.action_space == spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize(("name", "kind"), [("agent_0", "agent"), ("red_team_12", "red_team"), ("solo", "solo")])
def test_type_is_the_name_without_its_number(name: str, kind: str) -> None:
    assert agent_type(name) == kind


def test_equal_seeds_give_equal_episodes() -> None:
    first, second, other = (play(make_env(joint()), seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a[0], b[0]) and a[1:4] == b[1:4] for a, b in zip(first[1:], second[1:], strict=True))
    assert not np.array_equal(first[0][0], other[0][0])


def test_reward_and_return_of_each_agent() -> None:
    env = make_env(joint(own_rewards=True, team_reward="sum"))
    total = sum(step[1] for step in play(env)[1:])
    own = env.numbers()
    assert sum(own[f"return_{agent}"] for agent in ("near_0", "near_1", "far_0")) == pytest.approx(total)


def test_reward_of_one_team() -> None:
    env = make_env(joint(own_rewards=True, team="far"))
    assert sum(step[1] for step in play(env)[1:]) == pytest.approx(env.numbers()["return_far_0"])


def test_agent_that_leaves_has_zeros_and_only_the_first_action() -> None:
    config = joint(leaves_at=4, alive=True)
    spec, env = spec_from_env(config), make_env(config)
    layout = {key: part.shape for key, part in spec.parts}
    assert layout["alive"] == (3,)
    assert layout["action_mask"] == (7,)
    env.reset(seed=0)
    for _ in range(3):
        obs, *_ = env.step(np.zeros(3, int))
    offsets = np.cumsum([0, *(int(np.prod(shape)) for shape in layout.values())])
    places = {key: slice(a, b) for key, a, b in zip(layout, offsets, offsets[1:], strict=False)}
    assert obs[places["alive"]].tolist() == [1, 1, 1]
    assert obs[places["action_mask"]].tolist() == [1] * 7
    obs, _, terminated, truncated, _ = env.step(np.zeros(3, int))
    assert (terminated, truncated) == (False, False)
    assert obs[places["alive"]].tolist() == [1, 0, 1]
    assert obs[places["near_1"]].tolist() == [0, 0]
    assert obs[places["action_mask"]].tolist() == [1, 1, 1, 0, 1, 1, 1]


@pytest.mark.parametrize("container", ["dict", "tuple"])
def test_entries_within_each_other_and_actions_from_other_numbers(container: str) -> None:
    config = EnvConfig(f"pettingzoo:{MODULE}:make_rich", {"container": container, "leaves_at": 4, "alive": True})
    own, kind = ("inner.own", "kind") if container == "dict" else ("0", "1")
    spec = spec_from_env(config)
    assert {f"near_0.{own}", f"near_0.{kind}", f"far_0.{own}"} < {*spec.entries}
    env = make_env(config)
    obs, _ = env.reset(seed=0)
    over = False
    while not over:
        entries = split_parts(torch.from_numpy(obs)[None], spec)
        expected = 2 if entries["alive"][0, 1] else 0
        assert int(entries[f"near_1.{kind}"]) == expected
        obs, _, terminated, truncated, _ = env.step(np.array([1, 2, 0, 0, 1, 1]))
        over = terminated or truncated


@pytest.mark.parametrize("leaves_at", [None, 4, Signals.horizon])
def test_last_observation_is_that_of_the_agents(leaves_at: int | None) -> None:
    config = joint(leaves_at=leaves_at, alive=True)
    last = play(make_env(config))[-1]
    assert last[3]
    entries = split_parts(torch.from_numpy(last[0])[None], spec_from_env(config))
    assert entries["alive"][0].tolist() == [1, int(leaves_at is None), 1]
    assert entries["near_0"][0, 1] == 1  # its clock
    assert entries["near_1"][0, 1] == int(leaves_at is None)
    assert entries["far_0"][0, 2] != 0


def test_state_is_an_entry_of_the_joint_observation_alone() -> None:
    assert dict(spec_from_env(joint(state=True)).parts)["state"].shape == (3,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"own_rewards": True}, "team_reward: sum"),
        ({"leaves_at": 2}, "alive: true"),
        ({"team": "nobody"}, r"^env\.kwargs: there is no team 'nobody'"),
        ({"team_reward": "best"}, r"^env\.kwargs: .*Use equal, sum, mean\.$"),
    ],
)
def test_unclear_rewards_and_agents_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, SpecMismatchError), match=message):
        play(make_env(joint(**kwargs)))


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("pettingzoo:no_such_module_v0", "there is no module 'no_such_module_v0'"),
        (f"pettingzoo:{MODULE}:make_number", "expected an environment of PettingZoo, found int"),
        (f"pettingzoo:{MODULE}:make_empty", "no possible_agents"),
        ("pettingzoo:json.decodr", r"there is no module 'json\.decodr'\. Did you mean 'decoder'\?$"),
        ("pettingzoo:no_such_package.spread_v0", r"there is no module 'no_such_package\.spread_v0'\. Install"),
        ("pettingzoo:json", "neither parallel_env nor env"),
        (f"{MODULE}:make_signals", rf"returns no gymnasium\.Env\. Return one, or use pettingzoo:{MODULE}:make_signals"),
    ],
)
def test_ids_without_an_environment_are_refused_in_one_line(env_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_env(EnvConfig(env_id))
    assert "\n" not in str(error.value)
