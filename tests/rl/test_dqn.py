"""Tests of DQN with and without a teacher, and of its replay buffer."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.schedules import Constant
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.data.replay import TransitionBatch
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import Mode, read_jsonl, sha256_file
from rldistill.io.tensors import Checkpoint
from rldistill.policies.network import NetworkPolicy
from rldistill.rl import dqn
from rldistill.rl.config import DQNConfig
from rldistill.rl.dqn import DuelingLayer
from rldistill.rl.guidance import Guidance
from rldistill.rl.train_state import LearningTask
from rldistill.students import AnyStudent, Gru, Linear, Mlp, Ridge, Tree
from rldistill.students.features import Standardized, Standardizer
from rldistill.teachers.load import load_policy

from ..conftest import Reports
from .conftest import CARTPOLE, KL, SHORT, learn_dqn

pytestmark = pytest.mark.slow


class TestDQNLoss:
    """Loss of two transitions: e^2 / 2 up to an error of 1, and |e| - 1/2 beyond."""

    batch = TransitionBatch(
        torch.zeros(2, 1), torch.tensor([1, 0]), torch.tensor([1.0, 2.0]), torch.zeros(2, 1), torch.tensor([0.5, 0.0]),
        None,
    )  # fmt: skip
    q_value = torch.tensor([3.0, 4.0])
    target = torch.tensor([[2.0, 5.0], [1.0, 1.0]])

    def test_dqn_loss_computed_by_hand(self) -> None:
        loss = dqn.dqn_loss(self.q_value, self.batch, self.target)
        # targets: 1 + 0.5 * 5 = 3.5, and 2, after which the episode has ended
        assert loss.tolist() == pytest.approx([0.5**2 / 2, 2 - 0.5])

    def test_double_dqn_loss_computed_by_hand(self) -> None:
        """The learning network selects action 0, whose value in the target network is 2."""
        loss = dqn.dqn_loss(self.q_value, self.batch, self.target, torch.tensor([[9.0, 8.0], [0.0, 1.0]]))
        assert loss.tolist() == pytest.approx([(3 - (1 + 0.5 * 2)) - 0.5, 2 - 0.5])

    def test_targets_have_no_gradient(self) -> None:
        learning = torch.tensor([[7.0, 3.0], [4.0, 9.0]]).requires_grad_()
        target = self.target.clone().requires_grad_()
        q_value = learning.gather(1, self.batch.action[:, None]).squeeze(1)
        dqn.dqn_loss(q_value, self.batch, target, learning).sum().backward()
        assert target.grad is None
        assert learning.grad is not None
        assert learning.grad.tolist() == [[0.0, 1.0], [1.0, 0.0]]  # errors of 3 - (1 + 0.5 * 2) and 4 - 2


def test_rewards_of_an_unwrapped_game_are_clipped(tmp_path: Path) -> None:
    env, teacher = EnvConfig("PongNoFrameskip-v4"), load_policy("zoo:pong-dqn")
    task = LearningTask(env, Mlp((8,)), tmp_path, teacher, Guidance(KL))
    with task.open(DQNConfig(num_envs=1), torch.device("cpu")) as worker:
        assert (worker.env.id, worker.env.kwargs["reward_clipping"]) == ("ALE/Pong-v5", True)


def test_policy_is_evaluated_at_the_given_steps(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, eval_every=200)
    learn_dqn(CARTPOLE, Mlp((8,)), config, tmp_path, score=lambda policy: np.ones(1))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "score" in row] == [200, 400, 600, 800]


def test_dueling_layer_equals_its_linear_layer() -> None:
    layer, hidden = DuelingLayer(5, 3), torch.randn(7, 5)
    torch.testing.assert_close(layer.to_linear()(hidden), layer(hidden))
    assert (layer(hidden).mean(1) - layer.value(hidden)[:, 0]).abs().max() < 1e-5


@pytest.mark.parametrize("settings", [{}, {"dueling": True, "n_steps": 3}], ids=["double", "dueling, 3 steps"])
def test_return_on_cartpole_increases(tmp_path: Path, settings: dict[str, object]) -> None:
    config = DQNConfig(total_steps=12_000, learning_rate=1e-3, target_update_interval=200, **settings)  # type: ignore[arg-type]
    policy = learn_dqn(CARTPOLE, Mlp((32, 32)), config, tmp_path)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows[-1]["return"] > 80 > 40 > rows[0]["return"]
    assert isinstance(policy.output, torch.nn.Linear)


def test_average_of_the_weights_is_evaluated_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights_after: list[torch.Tensor] = []
    step = torch.optim.Adam.step

    def recorded_step(optimizer: torch.optim.Adam) -> None:
        step(optimizer)
        weights_after.append(optimizer.param_groups[0]["params"][0].detach().clone())

    monkeypatch.setattr(torch.optim.Adam, "step", recorded_step)
    scored_weights: list[torch.Tensor] = []

    def flat(policy: NetworkPolicy) -> torch.Tensor:
        return torch.cat([part.detach().flatten() for part in policy.parameters()])

    def score(policy: NetworkPolicy) -> NDArray[np.float64]:
        scored_weights.append(flat(policy))
        return np.array([2.0 if len(scored_weights) == 2 else 1.0])  # the second evaluation has the best score

    config = dataclasses.replace(SHORT, ema_decay=0.75, schedule="constant", eval_every=200)
    monkeypatch.setattr("rldistill.rl.dqn.LOG_INTERVAL_STEPS", 200)
    kept = learn_dqn(CARTPOLE, Linear(), config, tmp_path, score=score)
    mean, means = torch.zeros(10), []
    for number, weights in enumerate(weights_after):
        decay = min(0.75, number / (number + 10))  # 0.75 from the 31st step on
        mean = decay * mean + (1 - decay) * weights
        means.append(mean)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    scored = [row["update"] for row in rows if "score" in row]
    assert len(scored) == len(scored_weights) == 4
    assert scored[-1] == len(weights_after) > 600
    assert (means[-1] - weights_after[-1]).abs().max() > 1e-4
    torch.testing.assert_close(scored_weights, [means[update - 1] for update in scored])
    torch.testing.assert_close(flat(kept), scored_weights[1])


@dataclass(frozen=True)
class LinearWithBatchNorm(Linear):
    def build(self, spec: PolicySpec) -> NetworkPolicy:
        policy = super().build(spec)
        policy.body.append(torch.nn.BatchNorm1d(4))  # type: ignore[operator]
        return policy


def test_buffers_are_not_averaged(tmp_path: Path) -> None:
    policies = [
        learn_dqn(CARTPOLE, LinearWithBatchNorm(), dataclasses.replace(SHORT, ema_decay=decay), tmp_path / str(decay))
        for decay in (0.0, 1e-9)
    ]
    for one, other in zip(*(policy.buffers() for policy in policies), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(policies[0].body[-1].running_mean, torch.zeros(4))  # type: ignore[index]


def test_resumed_run_has_the_same_bytes(
    teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.io.tensors.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr("rldistill.io.tensors.MAX_CHECKPOINT_SHARE", math.inf)
    monkeypatch.setattr("rldistill.rl.dqn.LOG_INTERVAL_STEPS", 200)
    guidance = Guidance(KL, Constant(1.0))

    def train(name: str, mode: Mode = "new", stop_at: int = -1) -> None:
        def stop(done: int, total: int) -> None:
            if done == stop_at:
                raise KeyError

        learn_dqn(
            CARTPOLE, Mlp((16,)), SHORT, tmp_path / name, teacher=teacher, guidance=guidance, dataset=dataset, seed=3,
            mode=mode, progress=Reports(stop),
        )  # fmt: skip

    train("whole")
    for stop_at in (220, 500):
        with pytest.raises(KeyError):
            train("cut", "resume", stop_at)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train("cut", "resume")
    whole_file, cut_file = (tmp_path / name / "policy.safetensors" for name in ("whole", "cut"))
    assert sha256_file(whole_file) == sha256_file(cut_file)
    texts = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    for column in ("td_loss", "learning_rate"):
        assert [row[column] for row in texts[0]] == [row[column] for row in texts[1]]
    # after a quarter, a half, three quarters, and at the end
    rates = [row["learning_rate"] for row in texts[0]]
    assert rates == pytest.approx([SHORT.learning_rate * share for share in (0.75, 0.5, 0.25, 0.0)])


def test_checkpoint_share_is_limited_and_both_phases_report_progress(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr("rldistill.io.tensors.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr(Checkpoint, "save", lambda self, state: saved.append(state["counters"]["offline_updates"]))
    config = dataclasses.replace(SHORT, total_steps=8, offline_steps=3)
    reports: list[tuple[int, int]] = []
    for share, count in ((math.inf, 3), (1e-9, 1)):
        monkeypatch.setattr("rldistill.io.tensors.MAX_CHECKPOINT_SHARE", share)
        learn_dqn(
            CARTPOLE, Mlp((8,)), config, tmp_path / str(share), dataset=dataset,
            progress=Reports(lambda done, total: reports.append((done, total))),
        )  # fmt: skip
        assert saved[:count] == [*range(1, count + 1)]
        assert (len(saved) == 1) == (count == 1)
        saved.clear()
    assert reports == [(done, 11) for done in (1, 2, 3, 7, 11)] * 2


def test_only_legal_actions_are_explored_and_valued(masked_env: EnvConfig, tmp_path: Path) -> None:
    teacher = Mlp((8,)).build(spec_from_env(masked_env)).eval()
    data = collect(masked_env, teacher, CollectConfig(steps=400, epsilon=0.3), tmp_path / "dataset")
    config = dataclasses.replace(SHORT, total_steps=1_600, gamma=0.5, offline_steps=200)
    policy = learn_dqn(
        masked_env, Mlp((8,)), config, tmp_path / "student", teacher=teacher, guidance=Guidance(KL), dataset=data
    )
    rows = read_jsonl(tmp_path / "student" / "metrics.jsonl")
    assert all(np.isfinite(row["td_loss"]) and row["distillation_loss"] < 10 for row in rows)
    # Nearly 1 + 1/2 + 1/4 + ... far from the end; the value of an illegal action would be far off.
    assert 1 < rows[-1]["q_value"] < 2.2
    assert policy.spec.head.nvec == (3,)


def test_features_are_fitted_to_the_replay(tmp_path: Path) -> None:
    config = DQNConfig(total_steps=1_200, learning_starts=1_000, num_envs=4)
    policy = learn_dqn(EnvConfig("CartPole-v1"), Mlp((8,), features=Standardized()), config, tmp_path)
    (standardizer,) = (layer for layer in policy.body.modules() if isinstance(layer, Standardizer))
    assert (standardizer.std != 1).all()


def test_replay_too_small_for_a_return_is_refused(tmp_path: Path) -> None:
    # 4 environments, returns of 5 steps and the first state: 24 transitions
    config = dataclasses.replace(SHORT, buffer_size=20, n_steps=5)
    with pytest.raises(ConfigError, match=r"dqn\.buffer_size: 20 transitions of 4 environments .* at least 24"):
        learn_dqn(CARTPOLE, Mlp((8,)), config, tmp_path / "small")
    learn_dqn(CARTPOLE, Mlp((8,)), dataclasses.replace(config, buffer_size=24), tmp_path / "enough")


@pytest.mark.parametrize(
    ("student", "message"), [(Tree(), "learn by gradient"), (Ridge(), "learn by gradient"), (Gru(), "recurrent")]
)
def test_student_that_cannot_learn_by_dqn_is_refused(tmp_path: Path, student: AnyStudent, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learn_dqn(CARTPOLE, student, SHORT, tmp_path)


def test_continuous_actions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecMismatchError, match="one choice"):
        learn_dqn(EnvConfig("Pendulum-v1"), Mlp((8,)), SHORT, tmp_path)
    with pytest.raises(ConfigError, match=r"DQNConfig\.batch_size"):
        DQNConfig(batch_size=0)
