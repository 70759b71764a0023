"""Datasets as folders of LeRobot."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces
from imageio_ffmpeg import get_ffmpeg_exe
from numpy.typing import NDArray
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.data import lerobot
from rldistill.data.dataset import Dataset, episode_rows
from rldistill.data.lerobot import export_lerobot
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Mlp
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow

SMALL = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=32, epsilon=0.4)
PIXELS = {"max_num_frames_per_episode": 120}
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


class Observing(gymnasium.ObservationWrapper[Any, Any, Any]):
    """CartPole with observations of another space."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = self.space(env)

    def space(self, env: Any) -> gymnasium.Space[Any]:
        raise NotImplementedError


class Entries(Observing):
    def space(self, env: Any) -> gymnasium.Space[Any]:
        picture = spaces.Box(0, 255, (1, 5, 4), np.uint8)
        return spaces.Dict({"vector": env.observation_space, "side": spaces.Discrete(3), "picture": picture})

    def observation(self, observation: Any) -> Any:
        side = int(np.digitize(observation[0], [-0.01, 0.01]))
        return {"vector": observation, "side": side, "picture": np.full((1, 5, 4), side * 90, np.uint8)}


class Noise(Observing):
    """Pictures that no codec compresses, of an odd size."""

    def space(self, env: Any) -> gymnasium.Space[Any]:
        return spaces.Box(0, 255, (9, 7, 3), np.uint8)

    def observation(self, observation: Any) -> Any:
        rng = np.random.default_rng(int(abs(observation[0]) * 1e6))
        return rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)


class Grid(Observing):
    def space(self, env: Any) -> gymnasium.Space[Any]:
        return spaces.Box(0, 255, (4, 2, 2), np.uint8)

    def observation(self, observation: Any) -> Any:
        return np.repeat(np.abs(observation * 100).astype(np.uint8), 4).reshape(4, 2, 2)


class Deep(Observing):
    def space(self, env: Any) -> gymnasium.Space[Any]:
        return spaces.Box(-np.inf, np.inf, (1, 1, 1, 1, 2, 2))

    def observation(self, observation: Any) -> Any:
        return observation.reshape(1, 1, 1, 1, 2, 2)


class Slash(Observing):
    def space(self, env: Any) -> gymnasium.Space[Any]:
        return spaces.Dict({"a/b": env.observation_space})

    def observation(self, observation: Any) -> Any:
        return {"a/b": observation}


class Twice(Observing):
    def space(self, env: Any) -> gymnasium.Space[Any]:
        return spaces.Dict({"images.a": env.observation_space, "a": spaces.Box(0, 255, (3, 4, 4), np.uint8)})

    def observation(self, observation: Any) -> Any:
        return {"images.a": observation, "a": np.zeros((3, 4, 4), np.uint8)}


class Bits(gymnasium.ActionWrapper[Any, Any, Any]):
    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.action_space = spaces.MultiBinary((2, 2))

    def action(self, action: Any) -> int:
        return int(action[0, 0])


def cartpole(wrapper: type) -> EnvConfig:
    return EnvConfig("CartPole-v1", wrappers=(Wrapper(f"{__name__}:{wrapper.__name__}"),))


ENVS = {
    "vector": CARTPOLE,
    "continuous": EnvConfig("Pendulum-v1"),
    "bits": cartpole(Bits),
    "frames": EnvConfig("ALE/Pong-v5", PIXELS),
    "colors": EnvConfig("ALE/Pong-v5", {**PIXELS, "grayscale": False}),
    "noise": cartpole(Noise),
    "grid": cartpole(Grid),
    "dict": cartpole(Entries),
}


def collected(env: EnvConfig, folder: Path) -> Dataset:
    torch.manual_seed(0)
    return collect(env, Mlp((8,)).build(spec_from_env(env)).eval(), SMALL, folder)


def observations(data: Dataset) -> dict[str, NDArray[Any]]:
    """The observations that LeRobot should hold, by feature and in its order; pictures as `[N, H, W, 3]`."""
    whole = data.observations(np.concatenate(episode_rows(data.columns)))
    if data.spec.frames:
        newest = whole[:, -1].numpy()
        return {"observation.image": newest if newest.ndim == 4 else newest[..., None].repeat(3, -1)}
    if not data.spec.parts:
        return {"observation.image" if whole.shape[1:] == (9, 7, 3) else "observation.state": whole.numpy()}
    entries = {key: entry.numpy() for key, entry in split_parts(whole, data.spec).items()}
    picture = entries.pop("picture")[:, 0, :, :, None].repeat(3, -1)
    return {"observation.images.picture": picture, **{f"observation.{key}": entry for key, entry in entries.items()}}


def frames(video: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    command = [get_ffmpeg_exe(), "-i", str(video), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(decoded, np.uint8).reshape(-1, *shape)


@pytest.fixture(scope="module", params=ENVS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    data = collected(ENVS[request.param], folder / "dataset")
    export_lerobot(folder / "dataset", folder / "lerobot", fps=15)
    assert [path.name for path in sorted(folder.iterdir())] == ["dataset", "lerobot"]
    return data, folder / "lerobot"


def test_files_hold_each_step_of_a_dataset(exported: tuple[Dataset, Path]) -> None:
    data, folder = exported
    episodes = episode_rows(data.columns)
    rows, lengths = np.concatenate(episodes), [len(episode) for episode in episodes]
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 15, {"train": f"0:{len(episodes)}"})
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (len(episodes), 320, 1)
    table = pq.read_table(folder / DATA)
    read = {key: np.array(table[key].to_pylist()) for key in table.column_names}
    columns = {name: column[rows] for name, column in data.columns.items()}
    frame = np.concatenate([np.arange(length) for length in lengths])
    expected = {
        "action": columns["action"].reshape(read["action"].shape),
        "next.reward": columns["reward"],
        "next.done": columns["terminated"] | columns["truncated"],
        "next.truncated": columns["truncated"],
        "timestamp": (frame / 15).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(episodes)), lengths),
        "index": np.arange(320),
        "task_index": np.zeros(320),
    }
    for key, whole in observations(data).items():
        feature = info["features"][key]
        if feature["dtype"] != "video":
            expected[key] = whole
            continue
        video = folder / "videos" / key / "chunk-000/file-000.mp4"
        np.testing.assert_array_equal(frames(video, whole.shape[1:]), whole)
        assert feature["shape"] == [*whole.shape[1:]]
        assert feature["names"] == ["height", "width", "channels"]
    assert sorted(read) == sorted(expected)
    for key, column in expected.items():
        np.testing.assert_array_equal(read[key], column, err_msg=key)
        assert info["features"][key]["shape"] == ([*read[key].shape[1:]] or [1])


def test_episodes_and_statistics_describe_the_steps(exported: tuple[Dataset, Path]) -> None:
    data, folder = exported
    episodes = pq.read_table(folder / EPISODES).to_pylist()
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    lengths = [len(rows) for rows in episode_rows(data.columns)]
    assert [episode["length"] for episode in episodes] == lengths
    assert [episode["dataset_to_index"] for episode in episodes] == np.cumsum(lengths).tolist()
    assert tasks["task"].to_pylist() == episodes[0]["tasks"]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    info = json.loads((folder / "meta/info.json").read_text())
    statistics = json.loads((folder / "meta/stats.json").read_text())
    assert sorted(statistics) == sorted(info["features"])
    for key, whole in observations(data).items():
        is_video = info["features"][key]["dtype"] == "video"
        first = whole[: lengths[0]]
        for values, described in (
            (whole, statistics[key]),
            (first, {name: episodes[0][f"stats/{key}/{name}"] for name in statistics[key]}),
        ):
            flat = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1).astype(float) / (
                255 if is_video else 1
            )
            shape = (3, 1, 1) if is_video else (-1,)
            assert described["count"] == [len(values)]
            for name in ("min", "max", "mean", "std"):
                np.testing.assert_allclose(described[name], getattr(flat, name)(0).reshape(shape), atol=1e-6)
            for name, q in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
                quantile = np.quantile(flat, q, 0, method="inverted_cdf").reshape(shape)
                np.testing.assert_allclose(described[name], quantile, err_msg=f"{key} {name}")
        if is_video:
            ends = [episode[f"videos/{key}/to_timestamp"] for episode in episodes]
            np.testing.assert_allclose(ends, np.cumsum(lengths) / 15)


def test_lerobot_reads_each_step(exported: tuple[Dataset, Path]) -> None:
    datasets = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs lerobot")
    data, folder = exported
    read = datasets.LeRobotDataset("test/it", root=folder, video_backend="pyav")
    rows = np.concatenate(episode_rows(data.columns))
    assert (len(read), read.num_episodes) == (320, data.num_episodes)
    for index in np.random.default_rng(0).permutation(320)[:40].tolist():
        item = read[index]
        for key, whole in observations(data).items():
            values = item[key].numpy()
            if key in read.meta.video_keys:
                values = (values * 255).round().transpose(1, 2, 0)
            np.testing.assert_array_equal(values, whole[index], err_msg=key)
        np.testing.assert_array_equal(item["action"].flatten(), data.columns["action"][rows[index]].flatten())
        assert item["next.reward"] == data.columns["reward"][rows[index]]
        assert item["task"] in ("CartPole-v1", "Pendulum-v1", "ALE/Pong-v5")


def test_video_files_end_before_times_are_too_coarse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = collected(ENVS["noise"], tmp_path / "dataset")
    monkeypatch.setattr(lerobot, "MAX_VIDEO_S", 1)
    export_lerobot(tmp_path / "dataset", tmp_path / "out", fps=20)
    key = "observation.image"
    files = sorted((tmp_path / "out" / "videos" / key / "chunk-000").iterdir())
    videos = [frames(file, (9, 7, 3)) for file in files]
    np.testing.assert_array_equal(np.concatenate(videos), observations(data)[key])
    for episode in pq.read_table(tmp_path / "out" / EPISODES).to_pylist():
        start = episode[f"videos/{key}/from_timestamp"]
        part = videos[episode[f"videos/{key}/file_index"]][round(start * 20) :][: episode["length"]]
        steps = slice(episode["dataset_from_index"], episode["dataset_to_index"])
        np.testing.assert_array_equal(part, observations(data)[key][steps])
        assert start == 0 or episode[f"videos/{key}/to_timestamp"] <= 1


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        (Slash, r"^observation a/b: LeRobot allows no / in a name\. Rename the entry with a wrapper\.$"),
        (Deep, r"^observation: LeRobot stores up to 5 dimensions\. Flatten it with a wrapper\.$"),
        (
            Twice,
            r"^observation: two entries are named observation\.images\.a in LeRobot\. Rename one",
        ),
    ],
)
def test_observations_that_lerobot_cannot_store_are_refused(wrapper: type, message: str, tmp_path: Path) -> None:
    env = cartpole(wrapper)
    collect(env, FunctionPolicy(lambda obs: 1, spec_from_env(env)), SMALL, tmp_path / "dataset")
    with pytest.raises(ConfigError, match=message):
        export_lerobot(tmp_path / "dataset", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    collected(ENVS["noise"], tmp_path / "dataset")
    monkeypatch.setattr(lerobot, "_byte_counts", fail)
    with pytest.raises(KeyboardInterrupt):
        export_lerobot(tmp_path / "dataset", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_command_exports_once(teacher: NetworkPolicy, tmp_path: Path) -> None:
    def export(target: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["dataset", "export", str(tmp_path / "dataset"), target, "--quiet"])
        return result.exit_code, " ".join(result.output.split())

    collect(CARTPOLE, teacher, SMALL, tmp_path / "dataset")
    for target in ("lerobot:", str(tmp_path / "out")):
        code, text = export(target)
        assert (code, "expected minari:NAME, such as minari:pong/dqn-v0, or lerobot:DIR" in text) == (2, True)
    assert export(f"lerobot:{tmp_path / 'out'}") == (0, "")
    before = (tmp_path / "out" / DATA).read_bytes()
    code, text = export(f"lerobot:{tmp_path / 'out'}")
    assert (code, "the folder exists. Choose another one, or delete it." in text) == (2, True)
    assert (tmp_path / "out" / DATA).read_bytes() == before
    with pytest.raises(ConfigError, match="fps: expected at least 1, found 0"):
        export_lerobot(tmp_path / "dataset", tmp_path / "zero", fps=0)
