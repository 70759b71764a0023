"""Action masks go through every stage; the environment raises if an illegal action is ever taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError
from rldistill.core.heads import HEADS, ILLEGAL, MASK, BernoulliHead, CategoricalHead, QValuesHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import legal_actions
from rldistill.envs.wrappers import ActionMask
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.losses import QMSE, ForwardKL
from rldistill.losses.objective import Term
from rldistill.policies.wrappers import with_action_mask
from rldistill.students import Mlp, Ridge
from rldistill.teachers.load import load_policy


class Doors(gymnasium.Env[np.ndarray, int]):
    """Four doors, one of them open for sure; the reward is the number of the door."""

    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._next(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.open[action]:
            raise ValueError(f"door {action} is closed")
        self.time += 1
        return self._next(), float(action), self.time == 15, False, {}

    def action_masks(self) -> np.ndarray:
        return self.open

    def _next(self) -> np.ndarray:
        self.open = self.np_random.random(4) < 0.5
        self.open[self.np_random.integers(4)] = True
        return self.np_random.random(3).astype(np.float32)


class Unasked(Doors):
    """Environment without action masks."""

    action_masks = None  # type: ignore[assignment]


class Asked(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper with action masks, like sb3-contrib's ActionMasker."""

    def action_masks(self) -> Any:
        return self.unwrapped.open  # type: ignore[attr-defined]


class Switches(Doors):
    """Three switches, each of which may be held off, held on, or free; the reward is how many are on."""

    action_space = spaces.MultiBinary(3)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.open.reshape(3, 2)[np.arange(3), action].all():
            raise ValueError(f"{action} where only {self.open} may be")
        self.time += 1
        return self._next(), float(action.sum()), self.time == 15, False, {}

    def _next(self) -> np.ndarray:
        pairs = np.array([[True, False], [False, True], [True, True]])
        self.open = pairs[self.np_random.integers(3, size=3)].ravel()
        return self.np_random.random(3).astype(np.float32)


@pytest.fixture(scope="module")
def env() -> EnvConfig:
    gymnasium.register("Doors-v0", Doors)
    return EnvConfig("Doors-v0")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = MaskablePPO("MlpPolicy", Doors(), seed=0, n_steps=256, batch_size=64, learning_rate=3e-3)
    model.learn(4_000)
    path = tmp_path_factory.mktemp("doors") / "teacher.zip"
    model.save(path)
    return path


@pytest.mark.parametrize("loss", [ForwardKL(), QMSE()], ids=["kl", "q"])
def test_no_policy_takes_an_illegal_action(env: EnvConfig, file: Path, tmp_path: Path, loss: Any) -> None:
    teacher = with_action_mask(load_policy(file), spec_from_env(env))
    if isinstance(loss, QMSE):  # whatever these numbers are: as values, they are learned as they stand
        teacher = Valued(teacher)
    data = collect(env, teacher, CollectConfig(steps=2_000, epsilon=0.3, block_steps=64), tmp_path / "dataset")
    fit = DistillConfig((Term(loss),), epochs=30, batch_size=32)
    student = distill(data, Mlp((32,)), fit, tmp_path / "student")
    best = play(env, teacher, 20).returns.mean()
    random = play(env, None, 20).returns.mean()
    assert play(env, student, 20, PlayConfig(sample=True)).returns.mean() > random
    assert play(env, student, 20).returns.mean() > random + 0.7 * (best - random)


class Valued:
    """The same policy, its numbers called Q values."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.spec = dataclasses.replace(policy.spec, head=QValuesHead((4,)))

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, obs: Any, state: Any = None) -> tuple[PolicyOutput, None]:
        output, _ = self.policy(obs)
        return PolicyOutput(self.spec.head, output.params, mask=output.mask), None


@pytest.mark.parametrize("kind", ["q_values", "categorical"])
def test_least_squares_fits_the_legal_actions_alone(kind: Any, env: EnvConfig, tmp_path: Path) -> None:
    teacher = Plane(kind, spec_from_env(env))
    data = collect(env, teacher, CollectConfig(steps=2_000, epsilon=0.3, block_steps=64), tmp_path / "dataset")
    student = distill(
        data, Ridge(l2=1e-8), DistillConfig((Term(QMSE() if kind == "q_values" else ForwardKL()),)), tmp_path / "s"
    )
    rows = np.arange(500)
    batch = data.batch(rows)
    params, wanted = student(batch.obs)[0].params, batch.teacher.params
    legal = wanted > ILLEGAL / 2
    assert (params[~legal] <= ILLEGAL / 2).all()
    assert float((params.argmax(1) == wanted.argmax(1)).float().mean()) > (0.99 if kind == "q_values" else 0.9)
    if kind == "q_values":  # which are linear in what it sees, so that nothing is lost
        torch.testing.assert_close(params[legal], wanted[legal], rtol=1e-3, atol=1e-3)


class Plane:
    """Numbers that are linear in the observation, of those that are legal."""

    def __init__(self, kind: Any, spec: Any) -> None:
        self.spec = dataclasses.replace(spec, head=HEADS[kind]((4,)))
        self.weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, obs: Any, state: Any = None) -> tuple[PolicyOutput, None]:
        parts = split_parts(obs, self.spec)
        return PolicyOutput(self.spec.head, parts["obs"] @ self.weight).masked(parts[MASK]), None


def test_choices_are_maskable_ppos_own(env: EnvConfig, file: Path) -> None:
    policy, model = with_action_mask(load_policy(file), spec_from_env(env)), MaskablePPO.load(file)
    rng = np.random.default_rng(0)
    obs = rng.random((500, 3)).astype(np.float32)
    masks = rng.random((500, 4)) < 0.5
    masks[np.arange(500), rng.integers(0, 4, 500)] = True
    output, _ = policy(torch.from_numpy(np.concatenate([masks, obs], 1).astype(np.float32)))
    expected, _ = model.predict(obs, deterministic=True, action_masks=masks)
    np.testing.assert_array_equal(output.mode().numpy(), expected)
    inner = model.policy.get_distribution(torch.from_numpy(obs), action_masks=masks).distribution
    torch.testing.assert_close(output.params.softmax(-1), inner.probs, rtol=1e-5, atol=1e-5)


def test_random_actions_are_legal_and_even(env: EnvConfig) -> None:
    spec = spec_from_env(env)
    assert list(spec.entries) == [MASK, "obs"]
    obs = np.tile(np.array([1, 0, 1, 0, 0, 0, 0], np.float32), (4_000, 1))
    actions = legal_actions(obs, spec, np.random.default_rng(0))
    assert set(actions) == {0, 2}
    assert np.mean(actions == 2) == pytest.approx(0.5, abs=0.03)


def test_a_teacher_without_a_mask_is_restricted(env: EnvConfig, tmp_path: Path) -> None:
    class Open(Doors):
        def step(self, action: int) -> Any:
            self.open[:] = True
            return super().step(action)

        action_masks = None  # type: ignore[assignment]

    PPO("MlpPolicy", Open(), seed=0, n_steps=64).save(tmp_path / "teacher.zip")
    assert play(env, load_policy(tmp_path / "teacher.zip"), 3).lengths.tolist() == [15, 15, 15]


@pytest.mark.parametrize("inner", [(), (Wrapper("TimeFeature"),)], ids=["outermost", "further in"])
def test_a_wrapper_may_add_the_mask(inner: tuple[Wrapper, ...], tmp_path: Path) -> None:
    gymnasium.register("Unasked-v0", Unasked)
    try:
        env = EnvConfig("Unasked-v0", wrappers=(Wrapper(f"{__name__}:Asked"), *inner))
        assert list(spec_from_env(env).entries) == [MASK, "obs"]
        policy = Mlp((4,)).build(spec_from_env(env)).eval()
        collect(env, policy, CollectConfig(steps=400, epsilon=0.5), tmp_path)
        for player in (policy, None):
            assert play(env, player, 3).lengths.tolist() == [15, 15, 15]
    finally:
        gymnasium.registry.pop("Unasked-v0")


def test_bits_have_two_choices_each_as_maskable_ppo_has_it(tmp_path: Path) -> None:
    gymnasium.register("Switches-v0", Switches)
    try:
        model = MaskablePPO("MlpPolicy", Switches(), seed=0, n_steps=64)
        model.save(tmp_path / "teacher.zip")
        env = EnvConfig("Switches-v0")
        policy = with_action_mask(load_policy(tmp_path / "teacher.zip"), spec_from_env(env))
        data = collect(env, policy, CollectConfig(steps=600, epsilon=0.5, block_steps=64), tmp_path / "dataset")
        for player in (policy, None):
            assert play(env, player, 3, PlayConfig(sample=True)).lengths.tolist() == [15, 15, 15]
        seen = data.observations(np.arange(len(data)))
        expected, _ = model.predict(seen[:, 6:].numpy(), deterministic=True, action_masks=seen[:, :6].numpy())
        np.testing.assert_array_equal(policy(seen)[0].mode().numpy(), expected)
        student = distill(data, Mlp((8,)), DistillConfig(epochs=2), tmp_path / "student")
        assert play(env, student, 3, PlayConfig(sample=True)).lengths.tolist() == [15, 15, 15]
    finally:
        gymnasium.registry.pop("Switches-v0")


def test_fixed_bits_ignore_the_logits() -> None:
    output = PolicyOutput(BernoulliHead((3,)), torch.tensor([[5.0, -5.0, 1.0]]))
    held = output.masked(torch.tensor([[1, 0, 0, 1, 1, 1]]))  # off, on, free
    assert held.params.tolist() == [[ILLEGAL, -ILLEGAL, 1.0]]
    assert held.mode().tolist() == [[0, 1, 1]]
    assert held.sample(torch.Generator().manual_seed(0))[0, :2].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("actions", "words"),
    [(spaces.MultiBinary(2), "6 numbers, .* has 4"), (spaces.Box(-1, 1, (2,)), "need discrete actions")],
    ids=["bits", "continuous"],
)
def test_masks_of_the_wrong_size_are_named(actions: Any, words: str) -> None:
    class Wrong(Switches):
        action_space = actions

    with pytest.raises(ConfigError, match=words):
        ActionMask(Wrong()).reset(seed=0)


def test_the_gap_is_that_of_legal_actions() -> None:
    output = PolicyOutput(CategoricalHead((3,)), torch.tensor([[1.0, 5.0, 2.0]]))
    masked = output.masked(torch.tensor([[1, 0, 1]]))
    assert masked.params.tolist() == [[1.0, ILLEGAL, 2.0]]
    assert masked.mode().tolist() == [2]


def test_all_numbers_but_zero_are_legal() -> None:
    class Weights(Switches):
        action_space = spaces.Discrete(3)

        def action_masks(self) -> Any:
            return [0.5, 0, 256]

    obs, _ = ActionMask(Weights()).reset(seed=0)
    assert obs["action_mask"].tolist() == [1, 0, 1]
