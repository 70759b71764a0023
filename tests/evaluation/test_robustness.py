from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.core.errors import ConfigError
from rldistill.core.heads import MASK, CategoricalHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import EnvConfig, ObsPart, PolicySpec
from rldistill.envs.make import make_env
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig, RobustnessConfig
from rldistill.evaluation.episodes import play
from rldistill.evaluation.evaluate import evaluate
from rldistill.evaluation.results import robustness_rows
from rldistill.evaluation.robustness import noise_scale, noisy, perturbed_envs
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE

PONG = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 160})
NOTHING = RobustnessConfig(sticky=0, noise=0, pixel_noise=0, noop_max=0, physics=False)


def only(**changes: Any) -> RobustnessConfig:
    return RobustnessConfig(**{"sticky": 0, "noise": 0, "pixel_noise": 0, "noop_max": 0, "physics": False} | changes)


@pytest.mark.parametrize(
    ("env", "config", "names"),
    [
        (CARTPOLE, only(sticky=0.4), ["sticky actions 0.4"]),
        (EnvConfig("Pendulum-v1"), only(sticky=0.4), ["sticky actions 0.4"]),
        (PONG, only(sticky=0.6, noop_max=60), ["sticky actions 0.6", "no-op starts up to 60"]),
        (CARTPOLE, only(physics=True), ["gravity x 1.15", "weaker push x 0.8"]),
        (EnvConfig("Pendulum-v1"), only(physics=True), ["gravity x 1.15"]),
        (EnvConfig("Acrobot-v1"), only(physics=True), ["heavier link x 1.15"]),
        (EnvConfig("MountainCar-v0"), only(physics=True), ["gravity x 1.15", "weaker engine x 0.9"]),
        (CARTPOLE, only(env_kwargs={"bounds": {"sutton_barto_reward": True}}), ["bounds"]),
    ],
    ids=lambda value: value.id if isinstance(value, EnvConfig) else "",
)
def test_every_kind_of_perturbation_acts(env: EnvConfig, config: RobustnessConfig, names: list[str]) -> None:
    """Check with a fixed function of the observation that perturbed episodes differ."""
    found, left_out = perturbed_envs(env, config)
    assert (list(found), left_out) == (names, {})
    head = spec_from_env(env).head
    policy = FunctionPolicy(lambda obs: int(abs(obs).sum() * 1e4) % head.nvec[0], spec_from_env(env))
    for changed in found.values() if head.discrete else ():
        a, b = (play(each, policy, 2) for each in (env, changed))
        assert any(
            np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in zip(a.actions, b.actions, strict=True)
        ) or not np.array_equal(a.returns, b.returns)


def test_the_number_itself_is_changed() -> None:
    found, _ = perturbed_envs(CARTPOLE, only(physics=True))
    env: Any = make_env(found["gravity x 1.15"]).unwrapped
    assert env.gravity == pytest.approx(9.8 * 1.15)
    env = make_env(found["weaker push x 0.8"]).unwrapped
    assert (env.gravity, env.force_mag) == (9.8, pytest.approx(8.0))


def test_bodies_of_the_lander_and_of_mujoco() -> None:
    pytest.importorskip("Box2D")
    found, _ = perturbed_envs(EnvConfig("LunarLander-v3"), only(physics=True))
    assert list(found) == ["gravity x 1.15", "wind"]
    pytest.importorskip("mujoco")
    found, _ = perturbed_envs(EnvConfig("InvertedPendulum-v5"), only(physics=True))
    assert list(found) == ["gravity x 1.15", "masses x 1.15"]


def test_perturbations_without_effect_are_left_out_with_a_reason() -> None:
    found, left_out = perturbed_envs(PONG, RobustnessConfig(sticky=0.25))
    assert list(found) == ["no-op starts up to 60"]
    assert "already has" in left_out["sticky actions 0.25"]
    assert "cannot be changed" in left_out["physics"]
    found, left_out = perturbed_envs(CARTPOLE, only(noop_max=9, env_kwargs={"same": {}, "unknown": {"wings": 2}}))
    assert found == {}
    assert "only ale-py's" in left_out["no-op starts up to 9"]
    assert "no effect" in left_out["same"]
    assert "wings" in left_out["unknown"]
    assert "none of" in perturbed_envs(EnvConfig("FrozenLake-v1"), only(physics=True))[1]["physics"]
    assert perturbed_envs(CARTPOLE, NOTHING) == ({}, {})


class Echo:
    """Policy whose output is its observation."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, obs: Any, state: Any = None) -> tuple[PolicyOutput, None]:
        return PolicyOutput(self.spec.head, obs), None


def test_noise_has_the_configured_size() -> None:
    head = CategoricalHead((2,))
    spec = PolicySpec((2,), "float32", head)
    scale = noise_scale(spec, np.array([1.0, 20.0]), 0.25, 0.0)
    assert scale.tolist() == [0.25, 5.0]
    seen = noisy(Echo(spec), scale, torch.Generator().manual_seed(0))(torch.full((20_000, 2), 3.0))[0].params
    # the standard error of a standard deviation is s / sqrt(2 n), 0.5% here
    torch.testing.assert_close(seen.std(0), scale, rtol=0.02, atol=0)
    torch.testing.assert_close(seen.mean(0), torch.tensor([3.0, 3.0]), rtol=0, atol=0.15)

    pixels = PolicySpec((1, 2, 2), "uint8", head)
    scale = noise_scale(pixels, np.zeros((1, 2, 2)), 0.0, 0.1)
    assert scale.flatten().tolist() == pytest.approx([25.5] * 4)
    obs = torch.tensor([0, 255, 128, 128], dtype=torch.uint8).reshape(1, 1, 2, 2).expand(20_000, 1, 2, 2)
    seen = noisy(Echo(pixels), scale, torch.Generator().manual_seed(0))(obs)[0].params
    assert seen.dtype == torch.uint8
    flat = seen.float().flatten(1)
    assert flat[:, 2].std() == pytest.approx(25.5, rel=0.02)
    assert flat[:, 0].mean() == pytest.approx(25.5 / np.sqrt(2 * np.pi), rel=0.05)  # half a Gaussian: the rest is 0


def test_masks_and_names_take_no_noise() -> None:
    parts = (("a", ObsPart((2,), "float32")), ("n", ObsPart((), "int64", (5,))), (MASK, ObsPart((3,), "int8")))
    spec = PolicySpec.from_parts(parts, CategoricalHead((3,)))
    scale = noise_scale(spec, np.full(6, 2.0), 0.5, 0.0)
    assert scale.tolist() == [1, 1, 0, 0, 0, 0]


def test_loss_under_perturbations(teacher: NetworkPolicy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    poor = Linear().build(spec_from_env(CARTPOLE)).eval()
    perturbed = only(episodes=4, sticky=0.8, noise=3.0, noop_max=30, env_kwargs={"same": {}})
    config = EvaluateConfig(episodes=6, videos=False, robustness=perturbed)
    evaluation = evaluate(CARTPOLE, {"teacher": teacher, "poor": [poor, poor]}, config, tmp_path)
    found = evaluation.to_dict()
    section = found["robustness"]
    assert (section["episodes"], set(section["left_out"])) == (4, {"no-op starts up to 30", "same"})
    assert set(section["perturbations"]) == {"observation noise 3", "sticky actions 0.8"}
    before = found["policies"]["teacher"]
    for row in section["perturbations"].values():
        assert set(row) == {"teacher", "poor"}
        mine = row["teacher"]
        assert mine["lost"] == pytest.approx(np.mean(before["runs"][0]["returns"][:4]) - mine["mean"]["value"])
        assert mine["mean"]["ci95"][0] <= mine["mean"]["value"] <= mine["mean"]["ci95"][1]
        own, best, random = (part["mean"]["value"] for part in (mine, before, found["policies"]["random"]))
        assert mine["normalized"] == pytest.approx((own - random) / (best - random))
        assert mine["lost"] > 0
    assert len(robustness_rows(evaluation)) == 2
    assert "robustness, 4 episodes" in str(evaluation)
    assert robustness_rows(evaluation.model_copy(update={"robustness": None})) == []


def test_values_out_of_range_are_refused() -> None:
    for bad in ({"sticky": 1.0}, {"noise": -0.1}, {"episodes": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            RobustnessConfig(**bad)  # type: ignore[arg-type]
