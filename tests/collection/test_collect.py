from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
import yaml

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.data.blocks import ACTORS, read_block
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.envs.make import make_env
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.evaluation.videos import record_video
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear, Mlp
from rldistill.students.storage import load_native, save_policy
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE, manifest_bytes, q_spec

pytestmark = pytest.mark.slow


def make_teacher(env: EnvConfig) -> NetworkPolicy:
    torch.manual_seed(1)
    spec = q_spec(env)
    return (Linear() if spec.frames else Mlp((8,))).build(spec).eval()


def test_policy_that_cannot_be_pickled_is_refused(tmp_path: Path) -> None:
    class Within:
        spec = q_spec(CARTPOLE)

        def initial_state(self, batch_size: int) -> None:
            return None

        def __call__(self, obs: Any, state: Any = None) -> Any:
            raise AssertionError

    with pytest.raises(ConfigError, match=r"collect\.workers.*Within"):
        collect(CARTPOLE, Within(), CollectConfig(steps=100, workers=2), tmp_path / "data")


@pytest.mark.parametrize("workers", [2, 4])
def test_number_of_workers_does_not_change_a_byte(teacher: NetworkPolicy, tmp_path: Path, workers: int) -> None:
    config = CollectConfig(steps=1_500, num_streams=4, envs_per_stream=2, block_steps=50, epsilon=0.2)
    collect(CARTPOLE, teacher, config, tmp_path / "one", seed=5)
    collect(CARTPOLE, teacher, dataclasses.replace(config, workers=workers), tmp_path / "many", seed=5)
    assert manifest_bytes(tmp_path / "one") == manifest_bytes(tmp_path / "many")


@pytest.mark.parametrize(("env_id", "steps"), [("CartPole-v1", 1_000), ("BipedalWalker-v3", 600), ("ALE/Pong-v5", 600)])
def test_blocks_lost_in_the_middle_are_restored_exactly(tmp_path: Path, env_id: str, steps: int) -> None:
    env = EnvConfig(env_id)
    config = CollectConfig(steps=steps, num_streams=1, envs_per_stream=2, block_steps=50, epsilon=0.1)
    collect(env, make_teacher_for(env), config, tmp_path)
    before = manifest_bytes(tmp_path)
    document = json.loads(before)
    for block in document["blocks"][2:]:
        (tmp_path / block["file"]).unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(document | {"blocks": []}))
    collect(env, make_teacher_for(env), config, tmp_path, mode="resume")
    assert manifest_bytes(tmp_path) == before


def test_observations_beyond_the_cap_stay_on_disk_and_are_the_same(tmp_path: Path) -> None:
    config = CollectConfig(steps=400, block_steps=25, epsilon=0.3)
    whole = collect(CARTPOLE, make_teacher(CARTPOLE), config, tmp_path / "whole")
    capped = collect(CARTPOLE, make_teacher(CARTPOLE), dataclasses.replace(config, memory_gb=1e-9), tmp_path / "capped")
    assert isinstance(capped.obs, np.memmap)
    np.testing.assert_array_equal(capped.obs, whole.obs)
    assert manifest_bytes(tmp_path / "capped") == manifest_bytes(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "capped").iterdir()) == ["blocks", "manifest.json"]


class Grid(gymnasium.Env[Any, Any]):
    """Takes actions `[2, 2]`, of numbers or of bits, and refuses anything else."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, bits: bool = False, render_mode: str | None = None) -> None:
        spaces, self.render_mode = gymnasium.spaces, render_mode
        self.action_space = spaces.MultiBinary((2, 2)) if bits else spaces.Box(-1, 1, (2, 2))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.shape == (2, 2)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), float(action[1, 0]), False, False, {}

    def render(self) -> Any:
        return np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize("bits", [False, True])
def test_actions_of_two_dimensions_are_explored_and_resumed(bits: bool, tmp_path: Path) -> None:
    gymnasium.register("Grid-v0", Grid, max_episode_steps=15)
    env = EnvConfig("Grid-v0", {"bits": bits})
    torch.manual_seed(0)
    teacher = Mlp((4,)).build(spec_from_env(env)).eval()
    config = CollectConfig(steps=120, num_streams=1, envs_per_stream=2, block_steps=20, epsilon=0.5)
    data = collect(env, teacher, config, tmp_path)
    assert data.columns["action"].shape == (120, 4)
    np.testing.assert_array_equal(data.columns["reward"], data.columns["action"][:, 2])  # [1, 0] is the third of four
    expected = data.batch(np.arange(120)).teacher.mode().numpy()
    random = data.columns["actor"] == ACTORS.index("random")
    np.testing.assert_array_equal(data.columns["action"][~random], expected[~random])
    assert (data.columns["action"][random] != expected[random]).any()
    record_video(env, 0, 0, list(expected[:3]), tmp_path / "film.mp4")
    before = manifest_bytes(tmp_path)
    document = json.loads(before)
    (tmp_path / document["blocks"][2]["file"]).unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(document | {"blocks": []}))
    collect(env, teacher, config, tmp_path, mode="resume")
    assert manifest_bytes(tmp_path) == before


def make_teacher_for(env: EnvConfig) -> NetworkPolicy:
    torch.manual_seed(1)
    from rldistill.envs.spaces import spec_from_env

    spec = spec_from_env(env)
    return Mlp((8,)).build(spec).eval() if not spec.head.discrete else make_teacher(env)


@pytest.mark.parametrize(
    ("env_id", "steps", "kills"), [("CartPole-v1", 40_000, 8), ("LunarLander-v3", 20_000, 6), ("ALE/Pong-v5", 6_000, 6)]
)
def test_random_kills_do_not_change_the_hashes(tmp_path: Path, env_id: str, steps: int, kills: int) -> None:
    env = EnvConfig(env_id)
    save_policy(make_teacher(env), tmp_path / "teacher", {})
    run = tmp_path / "run.yaml"
    for name in ("whole", "killed"):
        document = {
            "env": {"id": env_id},
            "teacher": str(tmp_path / "teacher"),
            "collect": {"steps": steps, "block_steps": 100, "epsilon": 0.1},
            "out": str(tmp_path / name),
        }
        run.write_text(yaml.safe_dump(document))
        if name == "whole":
            subprocess.run(command(run), check=True)
    total = len(list((tmp_path / "whole").rglob("*.parquet")))
    rng = random.Random(0)
    killed = 0
    for target in sorted(rng.sample(range(1, total), kills)):
        process = subprocess.Popen([*command(run), "--resume"])
        while process.poll() is None and len(list((tmp_path / "killed").rglob("round*.parquet"))) < target:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed > 0
    subprocess.run([*command(run), "--resume"], check=True)
    assert manifest_bytes(tmp_path / "killed" / "dataset") == manifest_bytes(tmp_path / "whole" / "dataset")


def command(run: Path) -> list[str]:
    return [sys.executable, "-m", "rldistill", "collect", str(run), "--quiet"]


def test_labels_are_the_outputs_for_the_stored_observations(dataset: Dataset, teacher: NetworkPolicy) -> None:
    batch = dataset.batch(np.arange(len(dataset)))
    output, _ = teacher(batch.obs)
    torch.testing.assert_close(output.params, batch.teacher.params)


def test_next_labels_stay_within_episodes(tmp_path: Path) -> None:
    data = collect(
        CARTPOLE,
        make_teacher(CARTPOLE),
        CollectConfig(steps=400, num_streams=1, envs_per_stream=2, block_steps=40),
        tmp_path,
    )
    columns = data.columns
    rows = {(e, s): i for i, (e, s) in enumerate(zip(columns["episode"], columns["step"], strict=True))}
    followed = 0
    for (episode, step), row in rows.items():
        after = rows.get((episode, step + 1))
        if after is not None:
            followed += 1
            np.testing.assert_array_equal(columns["next_teacher"][row], columns["teacher"][after])
            assert not columns["terminated"][row]
    assert followed > 300


def test_stacks_of_pong_equal_those_of_the_emulator(tmp_path: Path) -> None:
    env = EnvConfig("ALE/Pong-v5")
    data = collect(
        env,
        make_teacher(env),
        CollectConfig(steps=240, num_streams=1, envs_per_stream=2, block_steps=40, epsilon=0.5),
        tmp_path,
    )
    manifest = Manifest.read(tmp_path)
    from rldistill.envs.seeding import episode_seed

    vector = make_vector_env(env, 2, lambda slot, nth: episode_seed(0, "collect", 0, 0, slot, nth))
    obs = vector.reset()
    actions = [data.columns["action"][start : start + 40] for start in range(0, len(data), 40)]
    for block in range(len(manifest.blocks)):
        for step in range(40):
            rows = np.array([block * 80 + step, block * 80 + 40 + step])
            np.testing.assert_array_equal(data.observations(rows).numpy(), obs)
            obs = vector.step(np.array([actions[2 * block][step], actions[2 * block + 1][step]])).obs
    vector.close()


def test_beta_below_1_needs_a_student(teacher: NetworkPolicy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="beta"):
        collect(CARTPOLE, teacher, CollectConfig(beta=0.5), tmp_path)


def test_teacher_of_another_environment_is_refused_before_the_first_step(
    teacher: NetworkPolicy, tmp_path: Path
) -> None:
    with pytest.raises(SpecMismatchError, match="observation shape"):
        collect(EnvConfig("Acrobot-v1"), teacher, CollectConfig(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_deterministic_game_needs_exploration(tmp_path: Path) -> None:
    env = EnvConfig("ALE/Pong-v5", {"repeat_action_probability": 0.0})
    with pytest.raises(ConfigError, match=r"collect\.epsilon: 0\.0 without sticky actions"):
        collect(env, make_teacher(env), CollectConfig(), tmp_path)


def test_existing_dataset_is_not_overwritten(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = CollectConfig(steps=100, block_steps=10)
    collect(CARTPOLE, teacher, config, tmp_path)
    before = manifest_bytes(tmp_path)
    with pytest.raises(ConfigError, match="--resume"):
        collect(CARTPOLE, teacher, config, tmp_path)
    with pytest.raises(ConfigError, match="steps"):
        collect(CARTPOLE, teacher, dataclasses.replace(config, steps=200), tmp_path, mode="resume")
    assert manifest_bytes(tmp_path) == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damaged_block_is_named(teacher: NetworkPolicy, tmp_path: Path, damage: str) -> None:
    collect(CARTPOLE, teacher, CollectConfig(steps=100, block_steps=10), tmp_path)
    path = sorted((tmp_path / "blocks").iterdir())[0]
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    with pytest.raises(CorruptArtifactError, match=path.name):
        Dataset.read([tmp_path])
    if damage != "delete":
        with pytest.raises(CorruptArtifactError, match=path.name):
            read_block(path)


@pytest.mark.parametrize("number", [0, 4])
def test_lost_block_is_collected_again(teacher: NetworkPolicy, tmp_path: Path, number: int) -> None:
    config = CollectConfig(steps=800, envs_per_stream=4, block_steps=20, epsilon=0.1)
    collect(CARTPOLE, teacher, config, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "blocks").iterdir()}
    lost = tmp_path / "blocks" / sorted(before)[number]
    lost.unlink()
    with pytest.raises(CorruptArtifactError, match=rf"{lost.name}.*`rldistill collect FILE --resume`"):
        Dataset.read([tmp_path])
    collect(CARTPOLE, teacher, config, tmp_path, mode="resume")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "blocks").iterdir()}


def test_truncated_manifest_names_the_remedy(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = CollectConfig(steps=100)
    collect(CARTPOLE, teacher, config, tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema"')
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json: not valid JSON.*--overwrite"):
        collect(CARTPOLE, teacher, config, tmp_path, mode="resume")
    assert len(collect(CARTPOLE, teacher, config, tmp_path, mode="overwrite"))


def test_some_episodes_are_always_for_training(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.data.dataset.HELDOUT_FRACTION", 1.0)
    heldout = collect(CARTPOLE, teacher, CollectConfig(steps=200, epsilon=0.5), tmp_path).heldout
    assert 0 < heldout.mean() < 1


def test_equal_episodes_are_on_the_same_side_of_the_split(dataset: Dataset) -> None:
    assert 0 < dataset.heldout.mean() < 0.5
    sides: dict[bytes, set[bool]] = {}
    for episode in range(dataset.num_episodes):
        rows = dataset.columns["episode"] == episode
        assert len(set(dataset.heldout[rows])) == 1
        sides.setdefault(dataset.columns["action"][rows].tobytes(), set()).add(bool(dataset.heldout[rows][0]))
    assert all(len(side) == 1 for side in sides.values())


def test_returns_to_go_are_discounted_sums_within_an_episode(dataset: Dataset) -> None:
    columns = dataset.columns
    ended = columns["episode"][columns["terminated"]][0]
    rows = np.flatnonzero(columns["episode"] == ended)
    rows = rows[np.argsort(columns["step"][rows])]
    # CartPole pays 1 a step: from k steps before the end, 1 + 0.99 + ... = (1 - 0.99^k) / 0.01.
    left = np.arange(len(rows), 0, -1)
    np.testing.assert_allclose(columns["return_to_go"][rows], (1 - 0.99**left) / 0.01, rtol=1e-5)


def recurrent_teacher() -> NetworkPolicy:
    torch.manual_seed(3)
    return Actor(lstm=(6, 1), hidden=(5,)).build(spec_from_env(CARTPOLE)).eval()


def test_recurrent_state_spans_blocks_and_resets_at_the_end_of_an_episode(tmp_path: Path) -> None:
    teacher = recurrent_teacher()
    config = CollectConfig(steps=320, num_streams=1, envs_per_stream=2, block_steps=20, epsilon=0.3)
    data = collect(CARTPOLE, teacher, config, tmp_path)
    assert data.num_episodes > 4
    for episode in range(data.num_episodes):
        rows = np.flatnonzero(data.columns["episode"] == episode)
        rows = rows[np.argsort(data.columns["step"][rows])]
        state = teacher.initial_state(1)
        for row in rows:
            with torch.no_grad():
                output, state = teacher(data.observations(rows[rows == row]), state)
            np.testing.assert_allclose(output.params[0], data.columns["teacher"][row], atol=1e-5)
        for row, after in itertools.pairwise(rows):
            np.testing.assert_allclose(data.columns["next_teacher"][row], data.columns["teacher"][after], atol=1e-5)


def test_recurrent_state_is_resumed(tmp_path: Path) -> None:
    config = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=20, epsilon=0.3)
    collect(CARTPOLE, recurrent_teacher(), config, tmp_path)
    before = manifest_bytes(tmp_path)
    document = json.loads(before)
    for block in document["blocks"]:
        if block["block"] >= 2:
            (tmp_path / block["file"]).unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(document | {"blocks": []}))
    collect(CARTPOLE, recurrent_teacher(), config, tmp_path, mode="resume")
    assert manifest_bytes(tmp_path) == before


@pytest.mark.parametrize("wrappers", [(), (Wrapper("TimeLimit", {"max_episode_steps": 7}),)], ids=["ended", "cut"])
def test_next_observations_are_stored_also_at_the_end_of_an_episode(
    wrappers: tuple[Wrapper, ...], tmp_path: Path
) -> None:
    env = EnvConfig("CartPole-v1", wrappers=wrappers)
    teacher = Mlp((4,)).build(spec_from_env(env)).eval()
    data = collect(
        env, teacher, CollectConfig(steps=200, num_streams=2, envs_per_stream=2, block_steps=16, epsilon=0.5), tmp_path
    )
    rows = np.arange(len(data))
    obs, after = data.observations(rows), data.next_observations(rows)
    with torch.no_grad():
        np.testing.assert_allclose(teacher(after)[0].params, data.columns["next_teacher"], atol=1e-5)
    alone = make_env(env)
    for row in rows:
        alone.reset(seed=0)
        alone.unwrapped.state = obs[row].numpy().astype(np.float64)
        np.testing.assert_allclose(alone.step(data.columns["action"][row])[0], after[row], atol=1e-5)


def test_next_frames_of_a_game_are_stored(tmp_path: Path) -> None:
    env = EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 100})
    teacher = Linear().build(spec_from_env(env)).eval()
    data = collect(
        env, teacher, CollectConfig(steps=160, num_streams=1, envs_per_stream=2, block_steps=30, epsilon=0.5), tmp_path
    )
    rows = np.arange(len(data))
    ended = data.columns["terminated"] | data.columns["truncated"]
    assert 0 < ended.sum() < len(data)
    after = data.next_observations(rows)
    with torch.no_grad():
        np.testing.assert_allclose(teacher(after)[0].params, data.columns["next_teacher"], rtol=1e-3, atol=1e-3)
    order = np.lexsort((data.columns["step"], data.columns["episode"]))
    for row, following in itertools.pairwise(order):
        if data.columns["episode"][row] == data.columns["episode"][following]:
            assert torch.equal(after[row], data.observations(np.array([following]))[0])


def test_labels_of_two_teachers_do_not_mix(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = CollectConfig(steps=100, block_steps=10)
    collect(CARTPOLE, teacher, config, tmp_path)
    before = manifest_bytes(tmp_path)
    other = make_teacher(CARTPOLE)
    for number in (0, 1):
        with pytest.raises(ConfigError, match=r"collected with the teacher.*--overwrite.*relabel"):
            collect(CARTPOLE, other, config, tmp_path, round=number, mode="resume")
    short = EnvConfig("CartPole-v1", {"max_episode_steps": 50})
    with pytest.raises(ConfigError, match=r"env\.kwargs\.max_episode_steps was none, now it is 50\. .*--overwrite"):
        collect(short, teacher, config, tmp_path, round=1, mode="resume")
    assert manifest_bytes(tmp_path) == before
    save_policy(teacher, tmp_path / "elsewhere", {})
    collect(CARTPOLE, load_native(tmp_path / "elsewhere"), config, tmp_path, round=1, mode="resume")
    assert Manifest.read(tmp_path).blocks_of(1)


def test_dataset_of_unknown_teacher_is_continued_with_a_warning(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = CollectConfig(steps=100, block_steps=10)
    collect(CARTPOLE, teacher, config, tmp_path)
    document = json.loads(manifest_bytes(tmp_path))
    document["rounds"]["0"]["teacher"] = None
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert len(Dataset.read([tmp_path])) == 112
    with pytest.warns(UserWarning, match="the teacher of its labels is unknown"):
        collect(CARTPOLE, teacher, config, tmp_path, mode="resume")


@pytest.mark.parametrize("number", [0, 1])
def test_teacher_that_fails_at_once_leaves_the_dataset(teacher: NetworkPolicy, tmp_path: Path, number: int) -> None:
    def fail(obs: Any) -> int:
        raise ValueError("no")

    failing = FunctionPolicy(fail, spec_from_env(CARTPOLE))
    config = CollectConfig(steps=100, block_steps=10)
    with pytest.raises(ConfigError, match="failed: ValueError"):
        collect(CARTPOLE, failing, config, tmp_path / "new", round=number)
    assert not (tmp_path / "new").exists()
    collect(CARTPOLE, teacher, config, tmp_path / "old")
    before = manifest_bytes(tmp_path / "old")
    with pytest.raises(ConfigError):
        collect(CARTPOLE, failing, config, tmp_path / "old", mode="overwrite")
    assert manifest_bytes(tmp_path / "old") == before
    Manifest.read(tmp_path / "old").check()


def test_reward_that_is_no_number_is_refused(teacher: NetworkPolicy, tmp_path: Path) -> None:
    class Unrewarding(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            obs, _, *rest = self.env.step(action)
            return obs, float("nan"), *rest

    gymnasium.register("Unrewarding-v0", lambda: Unrewarding(gymnasium.make("CartPole-v1")))
    with pytest.raises(SpecMismatchError, match="a reward is NaN"):
        collect(EnvConfig("Unrewarding-v0"), teacher, CollectConfig(steps=64), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_labels_that_are_not_finite_are_refused(teacher: NetworkPolicy, tmp_path: Path) -> None:
    broken = copy.deepcopy(teacher)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(SpecMismatchError, match="teacher: its params for some observations are NaN or infinite"):
        collect(CARTPOLE, broken, CollectConfig(steps=64), tmp_path / "nan")
