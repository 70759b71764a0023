"""Learning from reward, alone and beside a teacher: by hand, against PyTorch's distributions, and on CartPole."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal

from rldistill.core.env import EnvConfig
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import BernoulliHead, GaussianHead, MultiCategoricalHead
from rldistill.core.schedules import Constant, Linear
from rldistill.io.atomic import sha256_file
from rldistill.losses import QMSE, ForwardKL
from rldistill.losses.objective import Term
from rldistill.policies.network import NetworkPolicy
from rldistill.rl import dqn, ppo
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.rl.guidance import DistillationWeight, Guidance, proximal_weight
from rldistill.rl.minibatch import Minibatch, advantages
from rldistill.rl.rollout import Rollout
from rldistill.rl.task import LearningTask
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


def rollout_of(**columns: torch.Tensor) -> Rollout:
    """Return a rollout whose other columns are zeros `[T, N]`."""
    zeros = torch.zeros_like(columns["reward"])
    names = ("obs", "raw_action", "action_params", "starts", "next_obs")
    return Rollout(**{**dict.fromkeys(names, zeros), **columns}, last_obs={})  # type: ignore[arg-type]


def test_advantages_by_hand() -> None:
    # gamma 1/2, lambda 1/2; the episode ends at the second step, truncated in slot 0, terminated in slot 1.
    rollout = rollout_of(
        reward=torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]),
        terminated=torch.tensor([[False, False], [False, True], [False, False]]),
        truncated=torch.tensor([[False, False], [True, False], [False, False]]),
    )
    value = torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
    next_value = torch.tensor([[2.0, 2.0], [8.0, 8.0], [6.0, 6.0]])
    # delta: 1 + 1 - 0 = 2; 2 + 4 - 2 = 4, or 2 - 2 = 0 if terminated; 4 + 3 - 0 = 7
    assert advantages(rollout, value, next_value, 0.5, 0.5).tolist() == [[2 + 0.25 * 4, 2 + 0.25 * 0], [4, 0], [7, 7]]


def minibatch(**columns: torch.Tensor) -> Minibatch:
    """Return a minibatch whose other columns are zeros `[B]`."""
    zeros = torch.zeros_like(columns["advantage"])
    names = ("obs", "raw_action", "old_log_prob", "returns", "reward", "terminated", "starts")
    return Minibatch(**{**dict.fromkeys(names, zeros), **columns})


class TestPPOLoss:
    def test_terms_by_hand(self) -> None:
        """Advantages of mean 0 and deviation 1 stay as they are; c is 0.2."""
        batch = minibatch(
            advantage=torch.tensor([1.0, -1.0, 1.0, -1.0]) * 0.75**0.5,  # variance 4 * 0.75 / 3 = 1
            returns=torch.tensor([1.0, 2.0, 3.0, 4.0]),
        )
        ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
        terms = ppo.ppo_loss(
            ratio.log(), torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 0.0, 3.0, 2.0]), batch, 0.2
        )
        # min(1.5, 1.2), min(-1.5, -1.2), min(0.5, 0.8), min(-0.5, -0.8), of which the mean is -0.15
        assert terms.policy.item() == pytest.approx(0.15 * 0.75**0.5, abs=1e-6)
        assert terms.value.item() == pytest.approx((0 + 4 + 0 + 4) / 4)
        assert terms.entropy.item() == pytest.approx(3.0)
        assert terms.clip_fraction.item() == 1.0
        torch.testing.assert_close(terms.ratio, ratio)

    def test_gradient_is_zero_where_the_ratio_is_clipped(self) -> None:
        log_prob = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
        batch = minibatch(advantage=torch.tensor([1.0, -1.0, 1.0, -1.0]) * 0.75**0.5)
        zeros = torch.zeros(4)
        ppo.ppo_loss(log_prob, zeros, zeros, batch, 0.2).policy.backward()  # type: ignore[no-untyped-call]
        # d ratio / d log_prob = ratio; only the second and the third ratio are not clipped
        expected = torch.tensor([0.0, 1.5, -0.5, 0.0]) / 4 * 0.75**0.5
        torch.testing.assert_close(log_prob.grad, expected)

    def test_steps_of_the_teacher_do_not_count_in_the_policy(self) -> None:
        batch = minibatch(
            advantage=torch.tensor([3.0, 1.0, 100.0]),
            weight=torch.tensor([1.0, 1.0, 0.0]),
            returns=torch.tensor([0.0, 0.0, 3.0]),
        )
        log_prob = torch.tensor([1.1, 1.0, 5.0]).log()
        terms = ppo.ppo_loss(log_prob, torch.tensor([1.0, 2.0, 50.0]), torch.zeros(3), batch, 0.2)
        # of 3 and 1: mean 2, deviation sqrt(2), so the normalized advantages are 1 / sqrt(2) and -1 / sqrt(2)
        assert terms.policy.item() == pytest.approx(-(1.1 - 1.0) / 2**0.5 / 2, abs=1e-6)
        assert terms.entropy.item() == pytest.approx(1.5)
        assert terms.value.item() == pytest.approx(3.0)  # the critic learns from all steps

    @pytest.mark.parametrize("weight", [{}, {"weight": torch.ones(64)}], ids=["no weight", "weight 1"])
    def test_terms_equal_those_of_stable_baselines3(self, weight: dict[str, torch.Tensor]) -> None:
        """The expected values are the lines of `PPO.train`, on random numbers."""
        torch.manual_seed(0)
        log_prob, old, advantage, value, returns, entropy = torch.randn(6, 64)
        batch = minibatch(advantage=advantage, old_log_prob=old, returns=returns, **weight)
        terms = ppo.ppo_loss(log_prob, entropy, value, batch, 0.2)
        normalized = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        ratio = torch.exp(log_prob - old)
        policy = -torch.min(normalized * ratio, normalized * torch.clamp(ratio, 1 - 0.2, 1 + 0.2)).mean()
        torch.testing.assert_close(terms.policy, policy)
        torch.testing.assert_close(terms.value, torch.nn.functional.mse_loss(returns, value))
        torch.testing.assert_close(terms.entropy, entropy.mean())


def test_likelihoods_are_those_of_pytorch() -> None:
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


def test_it_learns_to_balance(tmp_path: Path) -> None:
    config = PPOConfig(total_steps=16_000, num_envs=8, rollout_length=64, epochs=6, batch_size=64, learning_rate=1e-3)
    learn(CARTPOLE, Mlp((32, 32), "tanh"), config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["return"] < 60
    assert rows[-1]["return"] > 100


def test_continuous_actions_are_drawn_from_a_gaussian(tmp_path: Path) -> None:
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
def test_stopped_and_resumed_it_has_the_same_bytes(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: AnyStudent, guidance: Guidance
) -> None:
    monkeypatch.setattr("rldistill.rl.train_state.CHECKPOINT_INTERVAL_S", 0.0)
    learn(CARTPOLE, student, SHORT, tmp_path / "whole", teacher=teacher, guidance=guidance, seed=3)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    for _ in range(3):
        with pytest.raises(Stop):
            learn(
                CARTPOLE, student, SHORT, tmp_path / "cut", teacher=teacher, guidance=guidance, seed=3, mode="resume",
                progress=Reports(stop),
            )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(CARTPOLE, student, SHORT, tmp_path / "cut", teacher=teacher, guidance=guidance, seed=3, mode="resume")
    one, other = (tmp_path / name / "policy.safetensors" for name in ("whole", "cut"))
    assert sha256_file(one) == sha256_file(other)
    rows = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    for column in ("return", "distillation_weight"):
        assert [json.loads(row)[column] for row in rows[0]] == [json.loads(row)[column] for row in rows[1]]


def test_teacher_counts_only_with_a_weight(teacher: NetworkPolicy, tmp_path: Path) -> None:
    def agreement(weight: float) -> tuple[float, float]:
        place = tmp_path / str(weight)
        config = PPOConfig(
            total_steps=4_096, num_envs=8, rollout_length=64, epochs=6, batch_size=64, learning_rate=3e-3
        )
        policy = learn(
            CARTPOLE, Mlp((32,)), config, place, teacher=teacher, guidance=Guidance(KL, Constant(weight)), seed=1
        )
        obs = torch.randn(500, 4) * 0.2
        with torch.no_grad():
            same = policy(obs)[0].mode() == teacher(obs)[0].mode()
        row = json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])
        return float(same.float().mean()), row["teacher_kl"]

    (with_weight, near), (without, far) = agreement(3.0), agreement(0.0)
    assert with_weight > 0.85
    assert without < with_weight
    assert 0 < near < far


def test_teacher_worse_than_random_play_causes_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"\(-5\) is not higher than random play \(3\), so there is nothing to distil"):
        Guidance(KL, teacher_return=-5.0, random_return=3.0)


def test_without_a_weight_the_teacher_changes_nothing(teacher: NetworkPolicy, tmp_path: Path) -> None:
    alone = learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "alone")
    beside = learn(
        CARTPOLE, Mlp((8,)), SHORT, tmp_path / "beside", teacher=teacher, guidance=Guidance(KL, Constant(0.0))
    )
    for name, value in alone.state_dict().items():
        assert torch.equal(value, beside.state_dict()[name])


def test_the_teacher_takes_the_first_steps(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = PPOConfig(total_steps=128, num_envs=4, rollout_length=32, epochs=1)
    always = Guidance(teacher_steps=Constant(1_000))
    before = learn(CARTPOLE, Mlp((8,)), config, tmp_path / "taught", teacher=teacher, guidance=always)
    torch.manual_seed(0)
    fresh = Mlp((8,)).build(before.spec)
    with torch.no_grad():
        fresh.output.weight.mul_(0.01)  # type: ignore[operator]
    # Every step was the teacher's, so that the policy has nothing to learn from.
    torch.testing.assert_close(before.output.weight, fresh.output.weight)


def test_the_teacher_is_not_weaned_off_before_the_policy_learns(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = PPOConfig(total_steps=2_560, num_envs=4, rollout_length=64, epochs=1, critic_warmup=1_280)
    holding = Guidance(KL, gate="adaptive", teacher_return=500.0, random_return=-4_000.0)  # so that all returns hold
    learn(CARTPOLE, Mlp((8,)), config, tmp_path, teacher=teacher, guidance=holding)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # Ten updates of 256 steps; the sixth row is the first after 1,280, and takes a tenth off the weight of the seventh.
    weights = [row["distillation_weight"] for row in rows]
    assert weights == pytest.approx([1.0] * 6 + [0.9, 0.81, 0.729, 0.6561])


def test_while_the_critic_warms_up_the_policy_stays(tmp_path: Path) -> None:
    initial = learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "initial")
    config = PPOConfig(total_steps=256, num_envs=4, rollout_length=32, critic_warmup=1_000)
    after = learn(CARTPOLE, Mlp((8,)), config, tmp_path / "after", initial=initial)
    for name, value in initial.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])


def test_after_the_warm_up_the_policy_begins_with_its_own_first_step(tmp_path: Path) -> None:
    """Adam's first step is at most the learning rate, however many the critic has made."""
    initial = learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "initial")
    config = PPOConfig(total_steps=640, num_envs=4, rollout_length=32, critic_warmup=512, epochs=1, batch_size=128)
    after = learn(CARTPOLE, Mlp((8,)), config, tmp_path / "after", initial=initial)
    before = initial.state_dict()
    moved = max(float((value - before[name]).abs().max()) for name, value in after.state_dict().items())
    assert 0.5 * config.learning_rate < moved <= 1.001 * config.learning_rate


def test_what_it_begins_with_is_kept_where_nothing_better_comes(tmp_path: Path) -> None:
    initial = learn(CARTPOLE, Mlp((8,)), SHORT, tmp_path / "initial")
    scores = iter([9.0, *[1.0] * 10])
    after = learn(
        CARTPOLE, Mlp((8,)), SHORT, tmp_path / "after", initial=initial, score=lambda policy: np.array([next(scores)])
    )
    for name, value in initial.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])


def test_features_look_at_the_first_observations(tmp_path: Path) -> None:
    config = PPOConfig(total_steps=512, rollout_length=64)
    policy = learn(EnvConfig("CartPole-v1"), Mlp((8,), features=Standardized()), config, tmp_path)
    (standardiser,) = (layer for layer in policy.body.modules() if isinstance(layer, Standardizer))
    assert (standardiser.mean != 0).all()
    assert (standardiser.std != 1).all()


def test_the_best_policy_is_kept(tmp_path: Path) -> None:
    scores = iter([5.0, 9.0, 1.0, 1.0])
    seen: list[torch.Tensor] = []

    def score(policy: NetworkPolicy) -> np.ndarray:  # type: ignore[type-arg]
        seen.append(policy.output.weight.detach().clone())  # type: ignore[operator]
        return np.array([next(scores)])

    config = PPOConfig(total_steps=512, num_envs=4, rollout_length=32, epochs=1, eval_every=128)
    kept = learn(CARTPOLE, Mlp((8,)), config, tmp_path, score=score)
    assert torch.equal(kept.output.weight, seen[1])  # type: ignore[arg-type]


def test_a_divergence_is_weighed_with_the_ratio_and_drives_it_nowhere() -> None:
    ratio = torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
    divergence = torch.tensor([2.0, 2.0, 2.0], requires_grad=True)
    weighed = proximal_weight(ratio, 0.2) * divergence
    assert weighed.tolist() == pytest.approx([1.6, 2.0, 6.0])
    weighed.sum().backward()
    assert ratio.grad is None
    assert divergence.grad is not None
    assert divergence.grad.tolist() == pytest.approx([0.8, 1.0, 3.0])


HOLDING = Guidance(KL, Constant(1.0), "adaptive", teacher_return=100.0, random_return=0.0)


class TestDistillationWeight:
    def test_by_the_students_performance_where_returns_are_negative(self) -> None:
        gate = DistillationWeight(
            Guidance(KL, Constant(2.0), "performance", teacher_return=-100.0, random_return=-300.0)
        )
        assert gate.weight(0.0) == 2.0
        for ended, (score, weight) in enumerate(((-250.0, 1.5), (-100.0, 0.0), (-50.0, 0.0), (-400.0, 2.0)), 1):
            gate.update([score] * 16, ended, 0.5)
            assert gate.weight(0.5) == pytest.approx(weight)

    def test_the_few_episodes_that_end_first_say_too_little_of_performance(self) -> None:
        gate = DistillationWeight(Guidance(KL, Constant(2.0), "performance", teacher_return=10.0, random_return=0.0))
        gate.update([10.0] * 15, 15, 0.5)
        assert gate.weight(0.5) == 2.0
        gate.update([10.0] * 15 + [2.0], 16, 0.5)
        assert gate.weight(0.5) == pytest.approx(2 * (1 - 152 / 160))

    def test_only_while_the_return_holds(self) -> None:
        """The episodes of each are the same, so that their mean has no error."""
        gate = DistillationWeight(HOLDING)
        for ended, (score, weight) in enumerate(((50.0, 0.9), (45.0, 0.81), (30.0, 1.0), (49.0, 0.9)), 1):
            gate.update([score] * 16, ended, 0.5)
            assert gate.weight(0.5) == pytest.approx(weight)

    def test_without_a_new_episode_nothing_is_taken_away(self) -> None:
        gate = DistillationWeight(HOLDING)
        for _ in range(3):
            gate.update([50.0] * 16, 16, 0.5)
        assert gate.weight(0.5) == pytest.approx(0.9)

    def test_a_few_lucky_episodes_are_not_held_against_it(self) -> None:
        gate = DistillationWeight(HOLDING)
        gate.update([90.0] * 15, 15, 0.5)
        gate.update([50.0] * 16, 16, 0.5)
        assert gate.weight(0.5) == pytest.approx(0.9)

    @pytest.mark.parametrize(("mean", "weight"), [(40.0, 0.81), (38.0, 1.0)])
    def test_what_may_be_chance_is_no_fall(self, mean: float, weight: float) -> None:
        """A mean of 70 ± 2 * 5.16 has fallen by a tenth of the way below 70 - 4 * 5.16 - 10 = 39.3."""
        gate = DistillationWeight(HOLDING)
        gate.update([50.0, 90.0] * 8, 16, 0.5)
        gate.update([mean - 20, mean + 20] * 8, 32, 0.5)
        assert gate.weight(0.5) == pytest.approx(weight)

    @pytest.mark.parametrize(
        "guidance",
        [
            Guidance(KL, Linear(1.0, 0.0)),
            Guidance(KL, Constant(1.0), "adaptive", teacher_return=100.0, random_return=0.0),
            Guidance(KL, Constant(1.0), "performance", teacher_return=100.0, random_return=0.0),
            Guidance(teacher_steps=Linear(20.0, 0.0)),
        ],
        ids=["schedule", "adaptive", "performance", "steps"],
    )
    def test_a_fall_after_it_began_is_warned_of_once(self, guidance: Guidance) -> None:
        gate = DistillationWeight(guidance)
        for ended in range(1, 4):
            assert gate.update([90.0] * 16, ended, 0.05 * ended) is None
        text = gate.update([60.0] * 16, 4, 0.5)
        assert text is not None
        assert "fallen from 90 to 60" in text
        assert gate.update([10.0] * 16, 5, 0.6) is None

    def test_a_fall_before_it_began_is_none_of_its_matter(self) -> None:
        gate = DistillationWeight(Guidance(KL, Linear(1.0, 0.0)))
        assert gate.update([100.0] * 16, 1, 0.0) is None
        assert gate.update([70.0] * 16, 2, 0.05) is None

    def test_state_is_restored_completely(self) -> None:
        weight, restored = DistillationWeight(HOLDING), DistillationWeight(HOLDING)
        for num_ended, mean in enumerate((50.0, 90.0, 60.0, 85.0), 16):
            weight.update([mean, mean + 1.0] * 8, num_ended, 0.5)
        changed = [name for name, value in weight.state_dict().items() if value != restored.state_dict()[name]]
        assert changed == ["share", "best_return", "margin_of_error", "num_ended", "has_decreased", "has_warned"]
        restored.load_state_dict(json.loads(json.dumps(weight.state_dict())))
        assert restored == weight

    def test_a_gate_that_never_opens_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"nothing to distil\. Use another teacher, or set gate: none"):
            Guidance(KL, gate="performance", teacher_return=-20.0, random_return=-20.0)
        with pytest.raises(ConfigError, match="needs teacher_return"):
            Guidance(KL, gate="adaptive")


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


def test_action_mask_is_for_the_policy_and_not_for_its_critic(strict: EnvConfig, tmp_path: Path) -> None:
    learn(strict, Mlp((8,)), PPOConfig(total_steps=256, num_envs=2, rollout_length=32, epochs=2), tmp_path)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["value_loss"] < 100  # and not the square of the value of an illegal action
