"""Tests of PPO with and without a teacher, and of the weight of the distillation losses."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import BernoulliHead, GaussianHead, MultiCategoricalHead
from rldistill.core.schedules import Constant, Linear
from rldistill.core.spec import EnvConfig
from rldistill.io.atomic import read_jsonl, sha256_file
from rldistill.losses import QMSE, ForwardKL
from rldistill.losses.objective import Term
from rldistill.policies.network import NetworkPolicy
from rldistill.rl import dqn, ppo
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.rl.guidance import Guidance
from rldistill.rl.rollout import Minibatch, Rollout, advantages
from rldistill.rl.train_state import LearningTask
from rldistill.students import AnyStudent, Gru, Mlp, Ridge, Tree
from rldistill.students.features import Standardized, Standardizer

from ..conftest import Reports

CARTPOLE = EnvConfig("CartPole-v1")
SHORT = PPOConfig(total_steps=512, num_envs=4, rollout_length=32, epochs=2, batch_size=32)
KL = (Term(ForwardKL()),)


def learn(env: EnvConfig, student: AnyStudent, config: PPOConfig, folder: Path, **options: Any) -> NetworkPolicy:
    """Call `ppo.learn` with the options of the task among the others."""
    names = {"teacher", "guidance", "head", "score", "seed"}
    task = LearningTask(env, student, folder, **{name: options.pop(name) for name in names & {*options}})
    return ppo.learn(task, config, **options)


def make_rollout(**columns: torch.Tensor) -> Rollout:
    """Return a rollout whose other columns are zeros `[T, N]`."""
    zeros = torch.zeros_like(columns["reward"])
    names = ("obs", "raw_action", "action_params", "starts", "next_obs")
    return Rollout(**{**dict.fromkeys(names, zeros), **columns}, last_obs={})  # type: ignore[arg-type]


def test_advantages_have_the_values_computed_by_hand() -> None:
    # gamma 1/2, lambda 1/2; the episode ends at the second step, truncated in slot 0, terminated in slot 1.
    rollout = make_rollout(
        reward=torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]),
        terminated=torch.tensor([[False, False], [False, True], [False, False]]),
        truncated=torch.tensor([[False, False], [True, False], [False, False]]),
    )
    value = torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
    next_value = torch.tensor([[2.0, 2.0], [8.0, 8.0], [6.0, 6.0]])
    # delta: 1 + 1 - 0 = 2; 2 + 4 - 2 = 4, or 2 - 2 = 0 if terminated; 4 + 3 - 0 = 7
    assert advantages(rollout, value, next_value, 0.5, 0.5).tolist() == [[2 + 0.25 * 4, 2 + 0.25 * 0], [4, 0], [7, 7]]


def make_minibatch(**columns: torch.Tensor) -> Minibatch:
    """Return a minibatch whose other columns are zeros `[B]`."""
    zeros = torch.zeros_like(columns["advantage"])
    names = ("obs", "raw_action", "old_log_prob", "returns", "reward", "terminated", "starts")
    return Minibatch(**{**dict.fromkeys(names, zeros), **columns})


class TestPPOLoss:
    def test_terms_have_the_values_computed_by_hand(self) -> None:
        """Advantages of mean 0 and standard deviation 1 are unchanged by normalization; c is 0.2."""
        batch = make_minibatch(
            advantage=torch.tensor([1.0, -1.0, 1.0, -1.0]) * 0.75**0.5,  # variance 4 * 0.75 / 3 = 1
            returns=torch.tensor([1.0, 2.0, 3.0, 4.0]),
        )
        ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
        entropy, value = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 0.0, 3.0, 2.0])
        terms = ppo.ppo_loss(ratio, entropy, value, batch, 0.2)
        # min(1.5, 1.2), min(-1.5, -1.2), min(0.5, 0.8), min(-0.5, -0.8), of which the mean is -0.15
        assert terms["policy_loss"].item() == pytest.approx(0.15 * 0.75**0.5, abs=1e-6)
        assert terms["value_loss"].item() == pytest.approx((0 + 4 + 0 + 4) / 4)
        assert terms["entropy"].item() == pytest.approx(3.0)
        assert terms["clip_fraction"].item() == 1.0

    def test_gradient_is_zero_where_the_ratio_is_clipped(self) -> None:
        log_prob = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
        batch = make_minibatch(advantage=torch.tensor([1.0, -1.0, 1.0, -1.0]) * 0.75**0.5)
        zeros = torch.zeros(4)
        ppo.ppo_loss(log_prob.exp(), zeros, zeros, batch, 0.2)["policy_loss"].backward()  # type: ignore[no-untyped-call]
        # d ratio / d log_prob = ratio; only the second and the third ratio are not clipped
        expected = torch.tensor([0.0, 1.5, -0.5, 0.0]) / 4 * 0.75**0.5
        torch.testing.assert_close(log_prob.grad, expected)

    def test_policy_does_not_learn_from_steps_of_the_teacher(self) -> None:
        batch = make_minibatch(
            advantage=torch.tensor([3.0, 1.0, 100.0]),
            weight=torch.tensor([1.0, 1.0, 0.0]),
            returns=torch.tensor([0.0, 0.0, 3.0]),
        )
        ratio = torch.tensor([1.1, 1.0, 5.0])
        terms = ppo.ppo_loss(ratio, torch.tensor([1.0, 2.0, 50.0]), torch.zeros(3), batch, 0.2)
        # of 3 and 1: mean 2, deviation sqrt(2), so the normalized advantages are 1 / sqrt(2) and -1 / sqrt(2)
        assert terms["policy_loss"].item() == pytest.approx(-(1.1 - 1.0) / 2**0.5 / 2, abs=1e-6)
        assert terms["entropy"].item() == pytest.approx(1.5)
        assert terms["value_loss"].item() == pytest.approx(3.0)  # the critic learns from all steps

    @pytest.mark.parametrize("weight", [{}, {"weight": torch.ones(64)}], ids=["no weight", "weight 1"])
    def test_terms_equal_those_of_stable_baselines3(self, weight: dict[str, torch.Tensor]) -> None:
        """The expected values are the lines of `PPO.train`, on random numbers."""
        torch.manual_seed(0)
        log_prob, old, advantage, value, returns, entropy = torch.randn(6, 64)
        batch = make_minibatch(advantage=advantage, returns=returns, **weight)
        ratio = torch.exp(log_prob - old)
        terms = ppo.ppo_loss(ratio, entropy, value, batch, 0.2)
        normalized = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy = -torch.min(normalized * ratio, normalized * torch.clamp(ratio, 1 - 0.2, 1 + 0.2)).mean()
        torch.testing.assert_close(terms["policy_loss"], policy)
        torch.testing.assert_close(terms["value_loss"], torch.nn.functional.mse_loss(returns, value))
        torch.testing.assert_close(terms["entropy"], entropy.mean())


def test_log_probabilities_equal_those_of_pytorch() -> None:
    logits = torch.randn(5, 5)
    raw_action = torch.tensor([[0, 1], [2, 0], [1, 1], [0, 0], [2, 1]])
    expected = sum(
        Categorical(logits=part).log_prob(at) for part, at in zip(logits.split((3, 2), 1), raw_action.T, strict=True)
    )
    torch.testing.assert_close(MultiCategoricalHead((3, 2)).log_prob(logits, raw_action), expected)
    bits = torch.randint(0, 2, (5, 5))
    torch.testing.assert_close(
        BernoulliHead((5,)).log_prob(logits, bits),
        Bernoulli(logits=logits).log_prob(bits.float()).sum(1),
    )
    head = GaussianHead(low=(-1.0,) * 2, high=(1.0,) * 2)
    action = torch.randn(5, 2)
    expected = Normal(logits[:, :2], logits[:, 2:4].exp()).log_prob(action).sum(1)
    torch.testing.assert_close(head.log_prob(logits[:, :4], action), expected)


def test_return_on_cartpole_increases(tmp_path: Path) -> None:
    config = PPOConfig(total_steps=16_000, num_envs=8, rollout_length=64, epochs=6, batch_size=64, learning_rate=1e-3)
    learn(CARTPOLE, Mlp((32, 32), "tanh"), config, tmp_path)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows[0]["return"] < 60
    assert rows[-1]["return"] > 100


def test_policy_of_continuous_actions_is_gaussian(tmp_path: Path) -> None:
    policy = learn(EnvConfig("Pendulum-v1"), Mlp((8,)), SHORT, tmp_path)
    assert policy.spec.head.kind == "gaussian"


@pytest.mark.parametrize(
    ("student", "guidance"),
    [
        (Mlp((16,)), Guidance(KL, Linear(1.0, 0.0))),
        (Gru(8, (8,)), Guidance(KL, Linear(1.0, 0.0))),
        (Mlp((16,)), Guidance(KL, Constant(1.0), "adaptive", teacher_return=500.0, random_return=20.0)),
    ],
    ids=["mlp", "gru", "adaptive"],
)
def test_resumed_run_has_the_same_bytes(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: AnyStudent, guidance: Guidance
) -> None:
    monkeypatch.setattr("rldistill.io.tensors.CHECKPOINT_INTERVAL_S", 0.0)
    learn(CARTPOLE, student, SHORT, tmp_path / "whole", teacher=teacher, guidance=guidance, seed=3)

    class Stop(Exception):
        pass

    for _ in range(3):
        reports = iter(range(99))

        def stop(done: int, total: int, reports: Iterator[int] = reports) -> None:
            if next(reports):  # the first update of each attempt is saved after its report
                raise Stop

        with pytest.raises(Stop):
            learn(
                CARTPOLE, student, SHORT, tmp_path / "cut", teacher=teacher, guidance=guidance, seed=3, mode="resume",
                progress=Reports(stop),
            )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(CARTPOLE, student, SHORT, tmp_path / "cut", teacher=teacher, guidance=guidance, seed=3, mode="resume")
    whole, cut = (tmp_path / name / "policy.safetensors" for name in ("whole", "cut"))
    assert sha256_file(whole) == sha256_file(cut)
    rows = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    for column in ("return", "distillation_weight"):
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]]


def test_student_approaches_the_teacher_only_with_a_weight(teacher: NetworkPolicy, tmp_path: Path) -> None:
    def agreement(weight: float) -> tuple[float, float]:
        folder = tmp_path / str(weight)
        config = PPOConfig(
            total_steps=4_096, num_envs=8, rollout_length=64, epochs=6, batch_size=64, learning_rate=3e-3
        )
        policy = learn(
            CARTPOLE, Mlp((32,)), config, folder, teacher=teacher, guidance=Guidance(KL, Constant(weight)), seed=1
        )
        obs = torch.randn(500, 4) * 0.2
        with torch.no_grad():
            same = policy(obs)[0].mode() == teacher(obs)[0].mode()
        row = read_jsonl(folder / "metrics.jsonl")[-1]
        return float(same.float().mean()), row["teacher_kl"]

    (with_weight, kl_with_weight), (without_weight, kl_without_weight) = agreement(3.0), agreement(0.0)
    assert with_weight > 0.85
    assert without_weight < with_weight
    assert 0 < kl_with_weight < kl_without_weight


def test_teacher_without_a_weight_changes_nothing(teacher: NetworkPolicy, tmp_path: Path) -> None:
    without_teacher = learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "without-teacher")
    with_teacher = learn(
        CARTPOLE, Mlp((8,)), SHORT, tmp_path / "with-teacher", teacher=teacher, guidance=Guidance(KL, Constant(0.0))
    )
    for name, value in without_teacher.state_dict().items():
        assert torch.equal(value, with_teacher.state_dict()[name])


def test_policy_is_unchanged_if_the_teacher_takes_all_steps(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = PPOConfig(total_steps=128, num_envs=4, rollout_length=32, epochs=1)
    guidance = Guidance(teacher_steps=Constant(1_000))
    before = learn(CARTPOLE, Mlp((8,)), config, tmp_path / "student", teacher=teacher, guidance=guidance)
    torch.manual_seed(0)
    fresh = Mlp((8,)).build(before.spec)
    with torch.no_grad():
        fresh.output.weight.mul_(0.01)  # type: ignore[operator]
    # The teacher took all steps, so the policy has nothing to learn from.
    torch.testing.assert_close(before.output.weight, fresh.output.weight)


def test_adaptive_gate_waits_for_the_end_of_the_critic_warmup(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = PPOConfig(total_steps=2_560, num_envs=4, rollout_length=64, epochs=1, critic_warmup=1_280)
    adaptive = Guidance(
        KL, gate="adaptive", teacher_return=500.0, random_return=-4_000.0
    )  # so no return counts as a drop
    learn(CARTPOLE, Mlp((8,)), config, tmp_path, teacher=teacher, guidance=adaptive)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    # Ten updates of 256 steps; the sixth row is the first after 1,280, and takes a tenth off the next weight.
    weights = [row["distillation_weight"] for row in rows]
    assert weights == pytest.approx([1.0] * 6 + [0.9, 0.81, 0.729, 0.6561])


def test_policy_is_unchanged_during_the_critic_warmup(tmp_path: Path) -> None:
    initial = learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "initial")
    config = PPOConfig(total_steps=256, num_envs=4, rollout_length=32, critic_warmup=1_000)
    after = learn(CARTPOLE, Mlp((8,)), config, tmp_path / "after", initial=initial)
    for name, value in initial.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])


def test_first_adam_step_of_the_policy_follows_the_critic_warmup(tmp_path: Path) -> None:
    """Adam's first step is at most the learning rate, independent of the number of steps of the critic."""
    initial = learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "initial")
    config = PPOConfig(total_steps=640, num_envs=4, rollout_length=32, critic_warmup=512, epochs=1, batch_size=128)
    after = learn(CARTPOLE, Mlp((8,)), config, tmp_path / "after", initial=initial)
    before = initial.state_dict()
    change = max(float((value - before[name]).abs().max()) for name, value in after.state_dict().items())
    assert 0.5 * config.learning_rate < change <= 1.001 * config.learning_rate


def test_initial_policy_is_kept_if_no_better_one_follows(tmp_path: Path) -> None:
    initial = learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "initial")
    scores = iter([9.0, *[1.0] * 10])
    after = learn(
        CARTPOLE, Mlp((8,)), SHORT, tmp_path / "after", initial=initial, score=lambda policy: np.array([next(scores)])
    )
    for name, value in initial.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])


def test_features_are_fitted_to_the_first_observations(tmp_path: Path) -> None:
    config = PPOConfig(total_steps=512, rollout_length=64)
    policy = learn(EnvConfig("CartPole-v1"), Mlp((8,), features=Standardized()), config, tmp_path)
    (standardizer,) = (layer for layer in policy.body.modules() if isinstance(layer, Standardizer))
    assert (standardizer.mean != 0).all()
    assert (standardizer.std != 1).all()


def test_best_policy_is_kept(tmp_path: Path) -> None:
    scores = iter([5.0, 9.0, 1.0, 1.0])
    weights: list[torch.Tensor] = []

    def score(policy: NetworkPolicy) -> np.ndarray:  # type: ignore[type-arg]
        weights.append(policy.output.weight.detach().clone())  # type: ignore[operator]
        return np.array([next(scores)])

    config = PPOConfig(total_steps=512, num_envs=4, rollout_length=32, epochs=1, eval_every=128)
    kept = learn(CARTPOLE, Mlp((8,)), config, tmp_path, score=score)
    assert torch.equal(kept.output.weight, weights[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("student", [Tree(), Ridge()])
def test_student_without_gradients_is_refused(tmp_path: Path, student: AnyStudent) -> None:
    with pytest.raises(ConfigError, match="learn by gradient"):
        learn(CARTPOLE, student, SHORT, tmp_path)


def test_teacher_that_does_not_fit_is_refused(teacher: NetworkPolicy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a teacher"):
        learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "a", guidance=Guidance(KL))
    with pytest.raises(SpecMismatchError, match="no Q values"):
        learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "b", teacher=teacher, guidance=Guidance((Term(QMSE()),)))
    with pytest.raises(SpecMismatchError, match="observation shape"):
        learn(EnvConfig("Acrobot-v1"), Mlp((8,)), SHORT, tmp_path / "c", teacher=teacher, guidance=Guidance(KL))
    with pytest.raises(ConfigError, match=r"PPOConfig\.total_steps"):
        PPOConfig(total_steps=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_refused(tmp_path: Path) -> None:
    task = LearningTask(CARTPOLE, Mlp((8,)), tmp_path)
    with pytest.raises(ConfigError, match=r"ppo\.device: PyTorch finds no GPU"):
        ppo.learn(task, PPOConfig(device="cuda"))
    with pytest.raises(ConfigError, match=r"dqn\.device: PyTorch finds no GPU"):
        dqn.learn(task, DQNConfig(device="cuda"), mode="overwrite")


def test_action_mask_does_not_change_the_critic(masked_env: EnvConfig, tmp_path: Path) -> None:
    learn(masked_env, Mlp((8,)), PPOConfig(total_steps=256, num_envs=2, rollout_length=32, epochs=2), tmp_path)
    row = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert row["value_loss"] < 100  # and not the square of the value of an illegal action
