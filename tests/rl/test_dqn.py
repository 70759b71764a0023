"""Q values from reward, alone and beside a teacher; the replay by hand and against plain loops."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.env import EnvConfig
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import CategoricalHead
from rldistill.core.schedules import Constant
from rldistill.core.spec import FramePipeline, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import Mode, sha256_file
from rldistill.losses import ForwardKL
from rldistill.losses.objective import Term
from rldistill.policies.network import NetworkPolicy
from rldistill.rl import dqn
from rldistill.rl.config import DQNConfig
from rldistill.rl.dqn import _Learner
from rldistill.rl.guidance import Guidance
from rldistill.rl.offline_data import ReplayObsEncoder
from rldistill.rl.q_network import DuelingLayer
from rldistill.rl.replay import ReplayBuffer, TransitionBatch
from rldistill.rl.task import LearningTask, Score
from rldistill.rl.train_state import TrainState
from rldistill.students import AnyStudent, Gru, Linear, Mlp, Ridge, Tree
from rldistill.students.features import Objects, Standardized, Standardizer
from rldistill.teachers.load import load_policy

from ..conftest import Reports

CARTPOLE = EnvConfig("CartPole-v1")
KL = (Term(ForwardKL()),)
SHORT = DQNConfig(
    total_steps=800, num_envs=4, buffer_size=400, learning_starts=80, batch_size=16, offline_steps=20,
    schedule="linear", ema_decay=0.9,
)  # fmt: skip
SPEC = PolicySpec((1,), "float32", CategoricalHead((2,)))


def learn(env: EnvConfig, student: AnyStudent, config: DQNConfig, folder: Path, **options: Any) -> NetworkPolicy:
    """Call `dqn.learn` with the options of the task among the others."""
    names = {"teacher", "guidance", "score", "seed"}
    task = LearningTask(env, student, folder, **{name: options.pop(name) for name in names & {*options}})
    return dqn.learn(task, config, **options)


def lived(replay: ReplayBuffer, steps: int, ends: dict[int, str]) -> None:
    """Slot 0 sees its step number, slot 1 a hundred more; reward 1, 2, 3, ...; episodes end at the steps of `ends`."""
    age = 0
    for step in range(steps):
        how = ends.get(step, "")
        cut = {slot: np.array([1000.0 + step + 100 * slot], np.float32) for slot in range(2) if how == "truncated"}
        replay.add(
            np.array([[step], [100 + step]], np.float32),
            cut,
            action=np.array([step % 2, 0]),
            reward=np.full(2, step + 1.0),
            terminated=np.full(2, how == "terminated"),
            truncated=np.full(2, how == "truncated"),
            age=np.full(2, age),
        )
        age = 0 if how else age + 1


def test_windows_of_several_steps_by_hand() -> None:
    replay = ReplayBuffer(SPEC, 20, 2)
    lived(replay, 14, {8: "terminated", 11: "truncated"})
    drawn = replay.sample(500, 3, 0.5, np.random.default_rng(0))
    assert set(drawn.obs.flatten().int().tolist()) == {*range(4, 11), *range(104, 111)}  # 10 steps of 14, less 3
    for obs, reward, following, discount in zip(
        drawn.obs.flatten(), drawn.reward, drawn.next_obs.flatten(), drawn.discount, strict=True
    ):
        step, slot = int(obs) % 100, int(obs) // 100
        r = step + 1.0
        if step in (6, 7, 8):  # the episode terminates within the window: at its third, second or first step
            expected = {6: r + (r + 1) / 2 + (r + 2) / 4, 7: r + (r + 1) / 2, 8: r}[step]
            assert (float(reward), float(discount)) == (pytest.approx(expected), 0.0)
        elif step in (9, 10):  # it is cut at step 11, whose last observation is 1011
            expected = {9: r + (r + 1) / 2 + (r + 2) / 4, 10: r + (r + 1) / 2}[step]
            assert float(reward) == pytest.approx(expected)
            assert (float(following), float(discount)) == (1011 + 100 * slot, {9: 0.125, 10: 0.25}[step])
        else:
            assert float(reward) == pytest.approx(r + (r + 1) / 2 + (r + 2) / 4)
            assert (float(following), float(discount)) == (float(obs) + 3, 0.125)


def test_no_window_leads_from_an_episode_that_was_dropped_into_another() -> None:
    replay = ReplayBuffer(SPEC, 20, 2)
    for steps, ends in ((13, {7: "terminated"}), (4, {})):  # the ring is full, and then it goes on elsewhere
        lived(replay, steps, ends)
        replay.truncate()
    assert len(replay) == 20
    replay.add(
        np.full((2, 1), 500.0, np.float32), {}, action=np.zeros(2, int), reward=np.ones(2),
        terminated=np.zeros(2, bool), truncated=np.zeros(2, bool), age=np.zeros(2, int),
    )  # fmt: skip
    drawn = replay.sample(2_000, 1, 0.5, np.random.default_rng(0))
    pairs = {(int(a), int(b)) for a, b in zip(drawn.obs.flatten() % 100, drawn.next_obs.flatten() % 100, strict=True)}
    # Steps 6 to 11 of the first life, whose 12th was forgotten, and 0 to 2 of the second, whose 3rd was.
    assert pairs == {(step, step + 1) for step in (6, 7, 8, 9, 10, 11, 0, 1, 2)}


def test_frames_are_stored_once_and_stacked_when_drawn() -> None:
    spec = dataclasses.replace(SPEC, obs_shape=(3, 2, 2), obs_dtype="uint8", frames=FramePipeline(2, 2, 3))
    replay = ReplayBuffer(spec, 20, 2)
    assert replay.columns["obs"].shape == (20, 2, 2)
    for step in range(15):
        age = step if step < 7 else step - 7
        stack = np.stack([np.full((2, 2), max(step - back, 0) if back <= age else 0) for back in (2, 1, 0)])
        replay.add(
            np.stack([stack, stack + 100]).astype(np.uint8), {}, action=np.zeros(2, int), reward=np.zeros(2),
            terminated=np.full(2, step == 6), truncated=np.zeros(2, bool), age=np.full(2, age),
        )  # fmt: skip
    drawn = replay.sample(300, 1, 0.9, np.random.default_rng(1))
    for obs in drawn.obs:
        newest = int(obs[2, 0, 0]) % 100
        age = newest if newest < 7 else newest - 7
        assert [int(frame[0, 0]) % 100 for frame in obs] == [newest - back if back <= age else 0 for back in (2, 1, 0)]


class TestDQNLoss:
    """Two transitions; the Huber loss is e^2 / 2 up to an error of 1, and |e| - 1/2 beyond."""

    batch = TransitionBatch(
        torch.zeros(2, 1), torch.tensor([1, 0]), torch.tensor([1.0, 2.0]), torch.zeros(2, 1), torch.tensor([0.5, 0.0]),
        None,
    )  # fmt: skip
    q_values = torch.tensor([[7.0, 3.0], [4.0, 9.0]])
    target = torch.tensor([[2.0, 5.0], [1.0, 1.0]])

    def test_of_one_network_by_hand(self) -> None:
        terms = dqn.dqn_loss(self.q_values, self.batch, self.target)
        assert terms.q_value.tolist() == [3.0, 4.0]
        # targets: 1 + 0.5 * 5 = 3.5, and 2, after which the episode has ended
        assert terms.td.tolist() == pytest.approx([0.5**2 / 2, 2 - 0.5])

    def test_of_two_networks_by_hand(self) -> None:
        """The learning network selects action 0, of which the target network gives the value 2."""
        terms = dqn.dqn_loss(self.q_values, self.batch, self.target, torch.tensor([[9.0, 8.0], [0.0, 1.0]]))
        assert terms.td.tolist() == pytest.approx([(3 - (1 + 0.5 * 2)) - 0.5, 2 - 0.5])

    def test_targets_have_no_gradient(self) -> None:
        learning, target = self.q_values.clone().requires_grad_(), self.target.clone().requires_grad_()
        dqn.dqn_loss(learning, self.batch, target, learning).td.sum().backward()
        assert target.grad is None
        assert learning.grad is not None
        assert learning.grad.tolist() == [[0.0, 1.0], [1.0, 0.0]]  # errors of 3 - (1 + 0.5 * 2) and 4 - 2


def test_rewards_of_a_bare_game_are_clipped_too(tmp_path: Path) -> None:
    env, teacher = EnvConfig("PongNoFrameskip-v4"), load_policy("zoo:pong-dqn")
    task = LearningTask(env, Mlp((8,)), tmp_path, teacher, Guidance(KL))
    with task.open(DQNConfig(num_envs=1), torch.device("cpu")) as setup:
        assert (setup.worker.env.id, setup.worker.env.kwargs["reward_clipping"]) == ("ALE/Pong-v5", True)


def test_policy_is_evaluated_at_the_given_steps(tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, eval_every=200)
    learn(CARTPOLE, Mlp((8,)), config, tmp_path, score=lambda policy: np.ones(1))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "score" in row] == [200, 400, 600, 800]


def test_a_dueling_layer_is_one_layer_in_the_end() -> None:
    layer, hidden = DuelingLayer(5, 3), torch.randn(7, 5)
    torch.testing.assert_close(layer.to_linear()(hidden), layer(hidden))
    assert (layer(hidden).mean(1) - layer.value(hidden)[:, 0]).abs().max() < 1e-5


@pytest.mark.parametrize("settings", [{}, {"dueling": True, "n_steps": 3}], ids=["double", "dueling, 3 steps"])
def test_it_learns_to_balance(tmp_path: Path, settings: dict[str, object]) -> None:
    config = DQNConfig(total_steps=12_000, learning_rate=1e-3, target_update_interval=200, **settings)  # type: ignore[arg-type]
    policy = learn(CARTPOLE, Mlp((32, 32)), config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["return"] > 80 > 40 > rows[0]["return"]
    assert isinstance(policy.output, torch.nn.Linear)


def test_average_of_the_weights_is_evaluated_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after: list[torch.Tensor] = []
    step = torch.optim.Adam.step

    def noted(optimizer: torch.optim.Adam) -> None:
        step(optimizer)
        after.append(optimizer.param_groups[0]["params"][0].detach().clone())

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    shown: list[torch.Tensor] = []

    def flat(policy: NetworkPolicy) -> torch.Tensor:
        return torch.cat([part.detach().flatten() for part in policy.parameters()])

    def score(policy: NetworkPolicy) -> NDArray[np.float64]:
        shown.append(flat(policy))
        return np.array([2.0 if len(shown) == 2 else 1.0])  # the second is the best

    config = dataclasses.replace(SHORT, ema_decay=0.75, schedule="constant", eval_every=200)
    monkeypatch.setattr("rldistill.rl.dqn.LOG_INTERVAL_STEPS", 200)
    kept = learn(CARTPOLE, Linear(), config, tmp_path, score=score)
    mean, means = torch.zeros(10), []
    for number, weights in enumerate(after):
        decay = min(0.75, number / (number + 10))  # which is 0.75 from the 31st on
        mean = decay * mean + (1 - decay) * weights
        means.append(mean)
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scored = [row["update"] for row in rows if "score" in row]
    assert len(scored) == len(shown) == 4
    assert scored[-1] == len(after) > 600
    assert (means[-1] - after[-1]).abs().max() > 1e-4
    torch.testing.assert_close(shown, [means[update - 1] for update in scored])
    torch.testing.assert_close(flat(kept), shown[1])


@dataclass(frozen=True)
class Counting(Linear):
    def build(self, spec: PolicySpec) -> NetworkPolicy:
        policy = super().build(spec)
        policy.body.append(torch.nn.BatchNorm1d(4))  # type: ignore[operator]
        return policy


def test_buffers_are_not_averaged(tmp_path: Path) -> None:
    counted = [
        learn(CARTPOLE, Counting(), dataclasses.replace(SHORT, ema_decay=decay), tmp_path / str(decay))
        for decay in (0.0, 1e-9)
    ]
    for one, other in zip(*(policy.buffers() for policy in counted), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(counted[0].body[-1].running_mean, torch.zeros(4))  # type: ignore[index]


def test_stopped_and_resumed_it_has_the_same_bytes(
    teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.rl.train_state.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr("rldistill.rl.train_state.MAX_CHECKPOINT_SHARE", math.inf)
    monkeypatch.setattr("rldistill.rl.dqn.LOG_INTERVAL_STEPS", 200)
    guidance = Guidance(KL, Constant(1.0))

    def train(place: str, mode: Mode = "new", stop_at: int = -1) -> None:
        def stop(done: int, total: int) -> None:
            if done == stop_at:
                raise KeyError

        learn(
            CARTPOLE, Mlp((16,)), SHORT, tmp_path / place, teacher=teacher, guidance=guidance, dataset=dataset, seed=3,
            mode=mode, progress=Reports(stop),
        )  # fmt: skip

    train("whole")
    for stop_at in (220, 500):
        with pytest.raises(KeyError):
            train("cut", "resume", stop_at)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train("cut", "resume")
    one, other = (tmp_path / name / "policy.safetensors" for name in ("whole", "cut"))
    assert sha256_file(one) == sha256_file(other)
    texts = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    for column in ("td_loss", "learning_rate"):
        assert [json.loads(row)[column] for row in texts[0]] == [json.loads(row)[column] for row in texts[1]]
    # a quarter of the way, half, three quarters, and the end
    rates = [json.loads(row)["learning_rate"] for row in texts[0]]
    assert rates == pytest.approx([SHORT.learning_rate * share for share in (0.75, 0.5, 0.25, 0.0)])


@pytest.mark.parametrize("score", [None, lambda policy: np.ones(1)], ids=["last", "best"])
def test_dataset_is_learned_first(
    teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path, score: Score | None
) -> None:
    config = dataclasses.replace(SHORT, total_steps=4, offline_steps=1_500, learning_rate=2e-3)
    policy = learn(
        CARTPOLE, Mlp((32,)), config, tmp_path, teacher=teacher, guidance=Guidance(KL), dataset=dataset, score=score
    )
    rows = np.flatnonzero(dataset.heldout)
    with torch.no_grad():
        same = policy(dataset.observations(rows))[0].mode() == dataset.batch(rows).teacher.mode()
    assert same.float().mean() > 0.9


def test_dataset_and_replay_are_sampled_by_their_sizes(
    teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(SHORT, total_steps=400, learning_starts=200, offline_steps=1)
    num_offline, replay_sizes = [], []
    make_step = _Learner._step

    def step(learner: _Learner, batch: TransitionBatch, weight: float) -> Any:
        if learner.state.offline_updates:
            assert learner.offline is not None
            assert len(batch.obs) == config.batch_size
            replay_sizes.append(len(learner.replay))
            rows = {row.tobytes() for row in learner.offline.dataset.observations(learner.offline.rows).numpy()}
            num_offline.append(sum(row.tobytes() in rows for row in batch.obs.numpy()))
        return make_step(learner, batch, weight)

    monkeypatch.setattr(_Learner, "_step", step)
    learn(CARTPOLE, Mlp((8,)), config, tmp_path, teacher=teacher, guidance=Guidance(KL), dataset=dataset)
    assert len(num_offline) > 40
    size = int((~dataset.heldout).sum())
    share = size / (np.array(replay_sizes) + size)
    expected, variance = (config.batch_size * share).sum(), (config.batch_size * share * (1 - share)).sum()
    assert abs(sum(num_offline) - expected) < 4 * np.sqrt(variance)


def test_two_batches_as_one() -> None:
    def drawn(first: int, count: int, labelled: bool) -> TransitionBatch:
        numbers = torch.arange(first, first + count, dtype=torch.float32)
        return TransitionBatch(numbers[:, None], numbers.long(), numbers, numbers[:, None] + 1, numbers / 9,
                     numbers[:, None] if labelled else None)  # fmt: skip

    both = drawn(0, 2, True).concat(drawn(2, 3, True))
    for name in ("obs", "action", "reward", "next_obs", "discount", "labels"):
        assert torch.equal(getattr(both, name), getattr(drawn(0, 5, True), name))
    assert drawn(0, 2, True).concat(drawn(2, 3, False)).labels is None
    assert torch.equal(drawn(0, 0, True).concat(drawn(2, 3, True)).obs, drawn(2, 3, True).obs)


def test_where_returns_end_at_each_reward_a_step_is_worth_its_own(dataset: Dataset, tmp_path: Path) -> None:
    """CartPole gives 1 for each step: with the discount of 0.9 values would go towards 10, in either phase."""
    config = dataclasses.replace(
        SHORT,
        total_steps=1_600,
        gamma=0.9,
        n_steps=3,
        learning_rate=5e-3,
        target_update_interval=20,
        terminal_on_reward=True,
    )
    for name, offline, steps in (("own", None, 1_600), ("taught", 800, 84)):
        config = dataclasses.replace(config, total_steps=steps, offline_steps=offline or 1)
        policy = learn(CARTPOLE, Mlp((16,)), config, tmp_path / name, dataset=dataset if offline else None)
        values = policy(dataset.observations(np.arange(0, 4_000, 40)))[0].params
        assert values.mean().item() == pytest.approx(1.0, abs=0.1), name


def test_replay_stores_features_of_frozen_layers_for_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pong = EnvConfig("ALE/Pong-v5")
    teacher = load_policy("zoo:pong-dqn")
    data = collect(pong, teacher, CollectConfig(steps=320, epsilon=0.1), tmp_path / "data")
    student = Mlp((8,), features=Objects((("ball", 14, 77, 11, 73), ("player", 14, 77, 73, 76))))
    config = dataclasses.replace(SHORT, total_steps=80)  # the last of which is the first to learn from
    replays: list[ReplayBuffer] = []
    make = ReplayBuffer.__init__

    def made(replay: ReplayBuffer, spec: PolicySpec, *sizes: int) -> None:
        replays.append(replay)
        make(replay, spec, *sizes)

    monkeypatch.setattr(ReplayBuffer, "__init__", made)
    told = []
    for name in ("kept", "not kept"):
        policy = learn(pong, student, config, tmp_path / name, teacher=teacher, guidance=Guidance(KL), dataset=data)
        told.append(policy(data.observations(np.arange(50)))[0].params)
        monkeypatch.setattr(
            ReplayObsEncoder, "choose", lambda policy, dataset, device: ReplayObsEncoder(policy, False, device)
        )
    kept, pictures = replays
    assert (kept.columns["obs"].shape, pictures.columns["obs"].shape) == ((400, policy.num_features), (400, 84, 84))
    with torch.no_grad():
        features = policy.frozen_features(torch.from_numpy(pictures.observations(np.arange(80))))
    torch.testing.assert_close(torch.from_numpy(kept.columns["obs"][:80]), features)
    torch.testing.assert_close(*told, atol=1e-3, rtol=1e-3)  # one step is from other rows: pictures want a whole stack


def test_replay_restores_only_its_own_size() -> None:
    replay, same, larger = ReplayBuffer(SPEC, 20, 2), ReplayBuffer(SPEC, 20, 2), ReplayBuffer(SPEC, 40, 2)
    lived(replay, 4, {2: "truncated"})
    assert {len(column) for column in replay.state_dict()["columns"].values()} == {8}
    same.load_state_dict(replay.state_dict())
    one, other = (each.sample(50, 1, 0.5, np.random.default_rng(0)) for each in (replay, same))
    assert torch.equal(one.next_obs, other.next_obs)
    lived(replay, 14, {})
    with pytest.raises(ValueError, match="20"):
        larger.load_state_dict(replay.state_dict())


def test_checkpoints_take_a_small_share_of_the_time_and_both_phases_show_their_progress(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr("rldistill.rl.train_state.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr(TrainState, "save", lambda state: saved.append(state.offline_updates))
    config = dataclasses.replace(SHORT, total_steps=8, offline_steps=3)
    told: list[tuple[int, int]] = []
    for share, count in ((math.inf, 3), (1e-9, 1)):
        monkeypatch.setattr("rldistill.rl.train_state.MAX_CHECKPOINT_SHARE", share)
        learn(
            CARTPOLE, Mlp((8,)), config, tmp_path / str(share), dataset=dataset,
            progress=Reports(lambda done, total: told.append((done, total))),
        )  # fmt: skip
        assert saved[:count] == [*range(1, count + 1)]
        assert (len(saved) == 1) == (count == 1)
        saved.clear()
    assert told == [(done, 11) for done in (1, 2, 3, 7, 11)] * 2


def test_resumes_within_the_dataset_phase(
    teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.rl.train_state.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr("rldistill.rl.train_state.MAX_CHECKPOINT_SHARE", math.inf)
    config = dataclasses.replace(SHORT, total_steps=4, offline_steps=60)
    step, count = _Learner._step, itertools.count()

    def counted(training: _Learner, *arguments: Any) -> Any:
        if next(count) == 100:  # 60 of the whole one, and 40 of the other
            raise KeyboardInterrupt
        return step(training, *arguments)

    monkeypatch.setattr(_Learner, "_step", counted)
    whole, cut = (
        partial(
            learn, CARTPOLE, Mlp((8,)), config, tmp_path / name, teacher=teacher, guidance=Guidance(KL), dataset=dataset
        )
        for name in ("whole", "cut")
    )
    whole()
    with pytest.raises(KeyboardInterrupt):
        cut()
    cut(mode="resume")
    assert next(count) == 60 + 40 + 1 + 20
    one, other = (tmp_path / name / "policy.safetensors" for name in ("whole", "cut"))
    assert sha256_file(one) == sha256_file(other)


def test_only_legal_actions_are_tried_and_valued(strict: EnvConfig, tmp_path: Path) -> None:
    teacher = Mlp((8,)).build(spec_from_env(strict)).eval()
    data = collect(strict, teacher, CollectConfig(steps=400, epsilon=0.3), tmp_path / "dataset")
    config = dataclasses.replace(SHORT, total_steps=1_600, gamma=0.5, offline_steps=200)
    policy = learn(
        strict, Mlp((8,)), config, tmp_path / "student", teacher=teacher, guidance=Guidance(KL), dataset=data
    )
    rows = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["td_loss"]) and row["distillation_loss"] < 10 for row in rows)
    # Nearly 1 + 1/2 + 1/4 + ... far from the end; an illegal action's value would be far off.
    assert 1 < rows[-1]["q_value"] < 2.2
    assert policy.spec.head.nvec == (3,)


def test_features_look_at_what_was_played(tmp_path: Path) -> None:
    config = DQNConfig(total_steps=1_200, learning_starts=1_000, num_envs=4)
    policy = learn(EnvConfig("CartPole-v1"), Mlp((8,), features=Standardized()), config, tmp_path)
    (standardiser,) = (layer for layer in policy.body.modules() if isinstance(layer, Standardizer))
    assert (standardiser.std != 1).all()


def test_a_replay_without_room_for_a_return_is_refused(tmp_path: Path) -> None:
    # 4 environments, 5 steps of return and the state it began with: 24 transitions
    config = dataclasses.replace(SHORT, buffer_size=20, n_steps=5)
    with pytest.raises(ConfigError, match=r"dqn\.buffer_size: 20 transitions of 4 environments .* at least 24"):
        learn(CARTPOLE, Mlp((8,)), config, tmp_path / "small")
    learn(CARTPOLE, Mlp((8,)), dataclasses.replace(config, buffer_size=24), tmp_path / "enough")


@pytest.mark.parametrize(
    ("student", "message"), [(Tree(), "learn by gradient"), (Ridge(), "learn by gradient"), (Gru(), "recurrent")]
)
def test_student_that_cannot_learn_by_dqn_is_refused(tmp_path: Path, student: AnyStudent, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learn(CARTPOLE, student, SHORT, tmp_path)


def test_continuous_actions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecMismatchError, match="one choice"):
        learn(EnvConfig("Pendulum-v1"), Mlp((8,)), SHORT, tmp_path)
    with pytest.raises(ConfigError, match=r"DQNConfig\.batch_size"):
        DQNConfig(batch_size=0)
