"""Parts of the learners, by hand: minibatches, losses of the teacher, workers and the state of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.heads import CategoricalHead, QValuesHead
from rldistill.core.policy import CPU, Labels, PolicyOutput
from rldistill.core.schedules import Linear
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import observation_views, spec_from_env
from rldistill.io import tensors
from rldistill.io.atomic import read_jsonl
from rldistill.losses import QMSE, ForwardKL
from rldistill.losses.objective import Term
from rldistill.policies.network import NetworkPolicy
from rldistill.rl import train_state
from rldistill.rl.config import PPOConfig
from rldistill.rl.guidance import Guidance, TeacherLoss
from rldistill.rl.rollout import Minibatch, RolloutWorker
from rldistill.rl.train_state import Learner, LearningTask, clip_rewards, fit_normalization
from rldistill.students import Mlp

from .conftest import CARTPOLE

Q, LOGITS = QValuesHead((2,)), CategoricalHead((2,))


def numbered_steps(num_steps: int, num_envs: int, **columns: torch.Tensor) -> Minibatch:
    """Return steps whose columns all hold the number of the step, plus 100 times that of the environment."""
    number = torch.arange(num_steps)[:, None] + 100.0 * torch.arange(num_envs)
    names = ("raw_action", "reward", "terminated", "starts", "old_log_prob", "advantage", "returns")
    return Minibatch(**dict.fromkeys(names, number), obs=number[..., None], **columns)


class TestMinibatch:
    def test_steps_are_split_in_random_order(self) -> None:
        steps = numbered_steps(3, 4, labels=torch.stack([torch.arange(3)[:, None] + 100.0 * torch.arange(4)] * 2, -1))
        orders = []
        for seed in (0, 0, 1):
            parts = [*steps.split(5, False, np.random.default_rng(seed))]
            assert [part.reward.shape for part in parts] == [(5,), (5,), (2,)]
            orders.append(torch.cat([part.reward for part in parts]).tolist())
            for part in parts:
                assert (part.weight, part.state) == (None, None)
                assert part.labels is not None
                for column in (part.obs[:, 0], part.raw_action, part.advantage, part.returns, part.labels[:, 1]):
                    assert torch.equal(column, part.reward)
        assert sorted(orders[0]) == sorted(steps.reward.flatten().tolist())
        assert orders[0] == orders[1] != orders[2]

    @pytest.mark.parametrize(("batch_size", "sizes"), [(6, [2, 2]), (8, [2, 2]), (9, [3, 1]), (1, [1] * 4)])
    def test_sequences_are_split_whole(self, batch_size: int, sizes: list[int]) -> None:
        steps = numbered_steps(3, 4, state=100.0 * torch.arange(4)[:, None])
        parts = [*steps.split(batch_size, True, np.random.default_rng(0))]
        assert [part.reward.shape for part in parts] == [(3, size) for size in sizes]
        for part in parts:
            assert part.state is not None
            assert torch.equal(part.state[:, 0], part.reward[0])
            assert torch.equal(part.obs[..., 0], part.reward)
            assert torch.equal(part.reward - part.reward[0], torch.arange(3.0)[:, None].expand(part.reward.shape))
        slots = torch.cat([part.reward[0] for part in parts]).tolist()
        assert sorted(slots) == [0, 100, 200, 300]
        assert slots != sorted(slots)

    def test_means_and_advantages_by_hand(self) -> None:
        steps = numbered_steps(1, 4)  # 0, 100, 200, 300
        assert steps.mean(steps.reward) == 150
        normalized = torch.tensor([[-1.5, -0.5, 0.5, 1.5]]) / (5 / 3) ** 0.5
        torch.testing.assert_close(steps.normalized_advantage(), normalized)
        masked = dataclasses.replace(steps, weight=torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        assert masked.mean(masked.reward) == 50
        torch.testing.assert_close(masked.normalized_advantage()[:, :2], torch.tensor([[-1.0, 1.0]]) / 2**0.5)
        none = dataclasses.replace(steps, weight=torch.zeros(1, 4))
        assert none.mean(none.reward) == 0
        assert torch.isfinite(none.normalized_advantage()).all()
        one = dataclasses.replace(steps, weight=torch.tensor([[0.0, 1.0, 0.0, 0.0]]))
        assert one.normalized_advantage()[0, 1] == 0
        assert torch.isfinite(one.normalized_advantage()).all()
        single = numbered_steps(1, 1)
        assert torch.equal(single.normalized_advantage(), single.advantage)
        equal = dataclasses.replace(steps, advantage=torch.full((1, 4), 3.0))
        assert torch.equal(equal.normalized_advantage(), torch.zeros(1, 4))

    def test_labels_have_the_columns_of_the_steps(self) -> None:
        columns = {
            name: torch.full((2,), i) for i, name in enumerate(("raw_action", "reward", "returns", "terminated"))
        }
        steps = dataclasses.replace(numbered_steps(1, 2), labels=torch.ones(2, 2), **columns)
        labels = steps.to_labels(Q)
        found = (labels.action, labels.reward, labels.return_to_go, labels.terminated)
        assert [column.tolist() for column in found] == [[0, 0], [1, 1], [2, 2], [3, 3]]
        assert labels.teacher == labels.next_teacher
        assert labels.teacher.head == Q
        assert labels.teacher.params.tolist() == [[1, 1], [1, 1]]


def make_labels(params: torch.Tensor, head: Any) -> Labels:
    output, zeros = PolicyOutput(head, params), torch.zeros(len(params))
    return Labels(output, output, zeros.long(), zeros, zeros, zeros.bool())


def test_losses_of_a_teacher_of_values_by_hand() -> None:
    # Gaps of 2 and 6: mean 4, so the temperature is 2.
    params = torch.tensor([[2 * math.log(3), 0.0], [0.0, 0.0]])
    loss = TeacherLoss((Term(QMSE(), Linear(2.0, 0.0)), Term(ForwardKL())), Q)
    loss.measure(torch.tensor([[[0.0, 2.0]], [[7.0, 1.0]]]))
    loss.measure(torch.tensor([[[0.0, 99.0]]]))
    assert (loss.action_gap, loss.temperature) == (4, 2)
    student = PolicyOutput(Q, torch.tensor([[2 * math.log(3), 2.0], [0.0, 0.0]]))
    # Squared errors (4 + 0) / 2 and 0, which weigh 1 at the half of training; p = (3/4, 1/4), q = (3, e) / (3 + e)
    total = 3 + math.e
    divergence = 3 / 4 * math.log(total / 4) + 1 / 4 * math.log(total / 4 / math.e)
    assert loss(student, make_labels(params, Q), 0.5).tolist() == pytest.approx([2 + divergence, 0], abs=1e-6)
    assert loss.kl(student, params) == {"teacher_kl": pytest.approx(divergence / 2, abs=1e-6)}
    # Logits are compared with the softened teacher as they are.
    logits = PolicyOutput(LOGITS, torch.tensor([[math.log(3), 0.0], [1.0, 1.0]]))
    assert loss.kl(logits, params) == {"teacher_kl": pytest.approx(0, abs=1e-6)}
    assert loss.kl(PolicyOutput(CategoricalHead((3,)), torch.zeros(2, 3)), params) == {}


def test_teacher_of_logits_has_temperature_1() -> None:
    loss = TeacherLoss((Term(ForwardKL()),), LOGITS)
    assert loss.action_gap == 1
    loss.measure(torch.tensor([[0.0, 9.0]]))
    assert (loss.action_gap, loss.temperature, loss.terms) == (1, 1, (Term(ForwardKL(1.0)),))


def test_needs_of_a_guidance() -> None:
    assert not Guidance().needs_teacher
    assert Guidance((Term(ForwardKL()),)).needs_teacher
    assert Guidance(teacher_steps=Linear(8.0, 0.0)).needs_teacher
    assert [Guidance(teacher_steps=Linear(8.0, 0.0)).num_teacher_steps(at) for at in (0, 0.3, 1)] == [8, 6, 0]
    assert Guidance().num_teacher_steps(0.0) == 0


@pytest.fixture
def worker() -> Iterator[RolloutWorker]:
    worker = RolloutWorker(CARTPOLE, observation_views(CARTPOLE), 2, seed=0)
    yield worker
    worker.vector.close()


def run_worker(worker: RolloutWorker, count: int) -> None:
    for number in range(count):
        worker.step(np.array([1, number % 2]))


def test_worker_counts_returns_and_ages(worker: RolloutWorker) -> None:
    assert worker.mean_return is None
    run_worker(worker, 5)
    assert worker.age.tolist() == [5, 5]
    assert worker.returns.tolist() == [5, 5]
    run_worker(worker, 5)  # pushed to the right alone, the pole falls in about ten steps
    assert len(worker.recent) == 1
    assert worker.age[0] == 10 - worker.recent[0] == worker.returns[0]
    assert worker.age[1] == worker.returns[1] == 10
    assert worker.mean_return == worker.recent[0]
    assert worker.student_obs(worker.obs).shape == (2, 4)


def test_worker_resumes_its_open_episodes(worker: RolloutWorker) -> None:
    run_worker(worker, 12)
    state = {name: value.clone() for name, value in worker.state_dict().items()}
    other = RolloutWorker(CARTPOLE, observation_views(CARTPOLE), 2, seed=0)
    assert other.load_state_dict(state)
    for one in (worker, other):
        run_worker(one, 20)
    assert np.array_equal(worker.obs, other.obs)
    assert (worker.recent, worker.returns.tolist()) == (other.recent, other.returns.tolist())
    assert worker.age.tolist() == other.age.tolist()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in worker.state_dict().items())
    # Other observations than those recorded: the open episodes are dropped for new ones, the finished ones count.
    state["obs_hash"] = state["obs_hash"] ^ 1
    dropped = RolloutWorker(CARTPOLE, observation_views(CARTPOLE), 2, seed=0)
    assert not dropped.load_state_dict(state)
    assert dropped.age.tolist() == dropped.returns.tolist() == [0, 0]
    assert len(dropped.recent) == 1
    assert (dropped.vector.episode - state["episode"].numpy()).tolist() == [1, 1]
    for one in (other, dropped):
        one.vector.close()


def make_learner(worker: RolloutWorker, folder: Path, **options: Any) -> Learner:
    policy = Mlp((4,)).build(spec_from_env(CARTPOLE))
    config = PPOConfig(total_steps=100, num_envs=2, eval_every=40)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
    return Learner(LearningTask(CARTPOLE, Mlp((4,)), folder, **options), config, worker, {"policy": policy}, optimizer)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return read_jsonl(folder / "metrics.jsonl")


def test_evaluations_are_due_at_intervals_and_at_the_end(worker: RolloutWorker, tmp_path: Path) -> None:
    scores = iter([[1.0, 3.0], [5.0], [5.0], [4.0]])
    evaluated: list[NetworkPolicy] = []

    def score(policy: NetworkPolicy) -> Any:
        evaluated.append(policy)
        return np.array(next(scores))

    guidance = Guidance(teacher_return=7.0)
    learner = make_learner(worker, tmp_path, score=score, guidance=guidance)
    policy = learner.networks["policy"]
    learner.log_start(policy)
    learner.log_start(policy)  # once
    for steps in (39, 40, 79, 81, 100):
        learner.steps = learner.updates = steps
        with torch.no_grad():
            policy.output.bias.fill_(float(steps))  # type: ignore[operator]
        assert learner.eval_due == (steps in (40, 81, 100))
        learner.log(policy, {"term": 1.5})
    rows = read_rows(tmp_path)
    assert [(row["step"], row["update"], row.get("score")) for row in rows] == [
        (0, 0, 2), (39, 39, None), (40, 40, 5), (79, 79, None), (81, 81, 5), (100, 100, 4),
    ]  # fmt: skip
    assert rows[1].keys() == {"step", "update", "return", "term", "teacher_return", "seconds"}
    assert (rows[1]["return"], rows[1]["term"], rows[1]["teacher_return"]) == (None, 1.5, 7)
    assert all(0 <= row["seconds"] < 60 for row in rows[1:])
    # The later of equal policies is kept.
    assert learner.networks["best"].output.bias.tolist() == [81, 81]  # type: ignore[operator]
    assert not any(copy is policy or copy.training for copy in evaluated)
    assert (learner.best_score, learner.next_eval, learner.num_rows) == (5, 160, 6)
    assert not make_learner(worker, tmp_path).eval_due


def test_checkpoints_restore_all(worker: RolloutWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(tensors, "time", SimpleNamespace(monotonic=lambda: now))
    learner = make_learner(worker, tmp_path, score=lambda policy: np.ones(1))
    policy = learner.networks["policy"]
    run_worker(worker, 12)
    policy(worker.student_obs(worker.obs))[0].params.sum().backward()
    learner.optimizer.step()
    learner.steps, learner.updates, learner.offline_updates = 40, 3, 2
    learner.log(policy, {})
    learner.weight.share = 0.25
    learner.teacher_loss = TeacherLoss((), Q)
    learner.teacher_loss.action_gap = 4.0
    path = tmp_path / tensors.CHECKPOINT
    learner.save_if_due()
    assert path.exists()
    path.unlink()
    for now in (1_009.9, 1_010.0):
        learner.save_if_due()
        assert path.exists() == (now == 1_010)
    learner.log(policy, {})  # after the checkpoint
    other_worker = RolloutWorker(CARTPOLE, observation_views(CARTPOLE), 2, seed=0)
    other = make_learner(other_worker, tmp_path)
    other.teacher_loss = TeacherLoss((), Q)
    other.restore()
    assert [getattr(other, name) for name in train_state.COUNTERS] == [40, 3, 2, 1, 80, 1]
    assert len(read_rows(tmp_path)) == 1
    assert other.weight.share == 0.25
    for name in ("policy", "best"):
        for key, value in learner.networks[name].state_dict().items():
            assert torch.equal(value, other.networks[name].state_dict()[key])
    one, two = (each.optimizer.state_dict()["state"] for each in (learner, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key][name], two[key][name]) for key in one for name in one[key])
    assert np.array_equal(other_worker.obs, worker.obs)
    assert other.teacher_loss is not None
    assert other.teacher_loss.action_gap == 4
    other_worker.vector.close()
    make_learner(worker, tmp_path / "fresh").save_if_due()  # without a step of the optimizer
    make_learner(worker, tmp_path / "fresh").restore()
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptArtifactError, match=r'last\.safetensors: .* Start again with mode="overwrite"'):
        make_learner(worker, tmp_path).restore()


def test_slow_checkpoints_are_rare(worker: RolloutWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, saved = 0.0, list[float]()
    monkeypatch.setattr(tensors, "time", SimpleNamespace(monotonic=lambda: now))
    learner = make_learner(worker, tmp_path)

    def save(state: object) -> None:
        nonlocal now
        saved.append(now)
        now += 3.0  # 3% of 100 s

    monkeypatch.setattr(learner.checkpoint, "save", save)
    for at in (10.0, 112.0, 113.0, 214.0, 216.5):
        now = at
        learner.save_if_due()
    assert saved == [10, 113, 216.5]


def test_rewards_of_atari_alone_are_clipped() -> None:
    assert clip_rewards(CARTPOLE) == CARTPOLE
    pong = EnvConfig("ALE/Pong-v5", {"mode": 0})
    assert clip_rewards(pong).kwargs == {"mode": 0, "reward_clipping": True}


def test_pixels_alone_are_standardized() -> None:
    image = dataclasses.replace(spec_from_env(CARTPOLE), obs_shape=(1, 2, 2), obs_dtype="uint8")
    pixels = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)
    network, vector = Mlp((4,)).build(image), Mlp((4,)).build(spec_from_env(CARTPOLE))
    fit_normalization([network], pixels)
    values = torch.tensor([0.0, 0.2, 0.4, 1.0])
    torch.testing.assert_close((network.obs_mean, network.obs_std), (values.mean(), values.std()))
    before = vector.obs_mean.clone()
    fit_normalization([vector], torch.ones(3, 4))
    assert torch.equal(vector.obs_mean, before)


def test_task_opens_with_its_seed_and_without_a_needless_teacher(tmp_path: Path, teacher: NetworkPolicy) -> None:
    config, draws = PPOConfig(num_envs=3), []
    for seed in (4, 4, 5):
        task = LearningTask(CARTPOLE, Mlp((4,)), tmp_path, teacher, seed=seed)
        with task.open(config, CPU) as worker:
            draws.append((torch.rand(1).item(), worker.obs.tolist()))
            assert worker.teacher is None
            assert worker.obs.shape == (3, 4)
    assert draws[0] == draws[1] != draws[2]
    guided = dataclasses.replace(task, guidance=Guidance((Term(ForwardKL()),)))
    with guided.open(config, CPU) as worker:
        assert worker.teacher is not None
        assert worker.teacher.step(worker.obs).params.shape == (3, 2)
    with (
        pytest.raises(ConfigError, match="guidance: it needs a teacher"),
        dataclasses.replace(guided, teacher=None).open(config, CPU),
    ):
        pass
