"""Collection: equal bytes after interruptions and with any number of workers, and refusals."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import signal
import threading
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
from rldistill.core.spec import EnvConfig
from rldistill.data.blocks import ACTORS, read_block
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.videos import record_video
from rldistill.io.atomic import write_json
from rldistill.io.execution import Execution
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear, Mlp
from rldistill.students.storage import load_native, save_policy
from rldistill.teachers.python import FunctionPolicy

from .. import commands
from ..conftest import CARTPOLE, manifest_bytes, q_spec

pytestmark = pytest.mark.slow


def make_teacher(env: EnvConfig) -> NetworkPolicy:
    torch.manual_seed(1)
    spec = q_spec(env)
    return (Linear() if spec.frames else Mlp((8,))).build(spec).eval()


def test_policy_that_cannot_be_pickled_is_refused(tmp_path: Path) -> None:
    class Within:
        spec = q_spec(CARTPOLE)

        def __init__(self) -> None:
            self.lock = threading.Lock()

        def initial_state(self, batch_size: int) -> None:
            return None

        def __call__(self, obs: Any, state: Any = None) -> Any:
            raise AssertionError

    with pytest.raises(ConfigError, match=r"execution\.workers: a policy cannot be sent .*lock"):
        collect(CARTPOLE, Within(), CollectConfig(steps=100), tmp_path / "data", execution=Execution(workers=2))


@pytest.mark.parametrize("workers", [2, 4])
def test_number_of_workers_does_not_change_a_byte(teacher: NetworkPolicy, tmp_path: Path, workers: int) -> None:
    config = CollectConfig(steps=1_500, num_streams=4, envs_per_stream=2, block_steps=50, epsilon=0.2)
    collect(CARTPOLE, teacher, config, tmp_path / "one", seed=5)
    collect(CARTPOLE, teacher, config, tmp_path / "many", seed=5, execution=Execution(workers=workers))
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
    write_json(tmp_path / "manifest.json", document | {"blocks": []})
    collect(env, make_teacher_for(env), config, tmp_path, mode="resume")
    assert manifest_bytes(tmp_path) == before


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
    record_video(env, 0, 0, expected[:3], tmp_path / "film.mp4")
    before = manifest_bytes(tmp_path)
    document = json.loads(before)
    (tmp_path / document["blocks"][2]["file"]).unlink()
    write_json(tmp_path / "manifest.json", document | {"blocks": []})
    collect(env, teacher, config, tmp_path, mode="resume")
    assert manifest_bytes(tmp_path) == before


def make_teacher_for(env: EnvConfig) -> NetworkPolicy:
    torch.manual_seed(1)
    from rldistill.envs.spaces import spec_from_env

    spec = spec_from_env(env)
    return Mlp((8,)).build(spec).eval() if not spec.head.discrete else make_teacher(env)


@pytest.mark.parametrize(
    ("env_id", "steps", "kills"), [("CartPole-v1", 24_000, 5), ("LunarLander-v3", 12_000, 4), ("ALE/Pong-v5", 3_000, 3)]
)
def test_random_kills_do_not_change_the_hashes(tmp_path: Path, env_id: str, steps: int, kills: int) -> None:
    env = EnvConfig(env_id)
    few_emulators = {"envs_per_stream": 2} if env_id.startswith("ALE/") else {}  # each takes long to start
    save_policy(make_teacher(env), tmp_path / "teacher", {})
    run = tmp_path / "run.yaml"
    for name in ("whole", "killed"):
        document = {
            "env": {"id": env_id},
            "teacher": str(tmp_path / "teacher"),
            "collect": {"steps": steps, "block_steps": 100, "epsilon": 0.1} | few_emulators,
            "out": str(tmp_path / name),
        }
        run.write_text(yaml.safe_dump(document))
        if name == "whole":
            assert commands.run("collect", str(run), "-q").returncode == 0
    total = len(list((tmp_path / "whole").rglob("*.parquet")))
    rng = random.Random(0)
    killed = 0
    for target in sorted(rng.sample(range(1, total), kills)):
        process = commands.start("collect", str(run), "-q", "--resume")
        while process.exitcode is None and len(list((tmp_path / "killed").rglob("round*.parquet"))) < target:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed > 0
    assert commands.run("collect", str(run), "-q", "--resume").returncode == 0
    assert manifest_bytes(tmp_path / "killed" / "dataset") == manifest_bytes(tmp_path / "whole" / "dataset")


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


def recurrent_teacher() -> NetworkPolicy:
    torch.manual_seed(3)
    return Actor(lstm=(6, 1), hidden=(5,)).build(spec_from_env(CARTPOLE)).eval()


def test_recurrent_state_is_resumed(tmp_path: Path) -> None:
    config = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=20, epsilon=0.3)
    collect(CARTPOLE, recurrent_teacher(), config, tmp_path)
    before = manifest_bytes(tmp_path)
    document = json.loads(before)
    for block in document["blocks"]:
        if block["block"] >= 2:
            (tmp_path / block["file"]).unlink()
    write_json(tmp_path / "manifest.json", document | {"blocks": []})
    collect(CARTPOLE, recurrent_teacher(), config, tmp_path, mode="resume")
    assert manifest_bytes(tmp_path) == before


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
    write_json(tmp_path / "manifest.json", document)
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
