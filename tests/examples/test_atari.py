"""Run files, agents and benchmark of Atari games: the same settings, the limits on parameters, and the networks."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.nn import functional as F

from rldistill.core.errors import ConfigError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import PolicySpec
from rldistill.envs.spaces import spec_from_env
from rldistill.run.jobs import load_teacher, with_loaded_features
from rldistill.run.stages import run_collect

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples" / "atari").glob("*.yaml"))
TEACHERS = ROOT.parent / "shared" / "teachers"
ABSENT = "an agent that is not part of the repository"
RECURRENT = ("riverraid", "spaceinvaders")
SMALL = [
    "collect.steps=32",
    "collect.epsilon=0.5",
    "collect.num_streams=1",
    "collect.envs_per_stream=2",
    "verify=false",
]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "atari_games.py"))


def agents() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / "atari" / "agents.py"))


def test_run_files_differ_in_game_teacher_and_view_only() -> None:
    assert len(FILES) == 8
    first: dict[str, Any] | None = None
    for file in FILES:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert ("views" in document.pop("env")) == (file.stem in RECURRENT)
        sampled = document["collect"].pop("sample")
        assert document["evaluate"].pop("sample") == sampled == ("dqn" not in document.pop("teacher"))
        assert ("features" in document["students"]) != (file.stem in RECURRENT)
        document["students"].pop("features", None)
        first = first or copy.deepcopy(document)
        assert document == first
    assert first is not None
    assert first["collect"]["steps"] + first["recipe"]["rounds"] * first["recipe"]["steps_per_round"] <= 200_000


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_run_file_starts_and_its_students_are_small(file: Path, tmp_path: Path, benchmark: dict[str, Any]) -> None:
    pytest.importorskip("cv2", reason="needs an extra")
    short = ["env.kwargs.max_episode_steps=16"] if file.stem in RECURRENT else []
    run = benchmark["planned"](file.stem, [f"out={tmp_path}", *SMALL, *short], None, TEACHERS)
    if run is None:
        pytest.skip(ABSENT)
    teacher, spec = load_teacher(run), spec_from_env(run.env)
    run = with_loaded_features(run)
    teacher_size = sum(parameter.numel() for parameter in teacher.parameters())
    for name, share in (("cnn", 0.07), ("tiny", 0.01)):
        size = sum(parameter.numel() for parameter in run.students[name].build(spec).parameters())
        assert size <= share * teacher_size
    dataset = run_collect(run, quiet=True)
    assert (len(dataset), dataset.spec.obs_shape) == (32, (4, 84, 84))
    logits = dataset.columns["teacher"]
    assert logits.shape == (32, spec.head.num_params)
    assert np.isfinite(logits).all()


def convolutional_file(path: Path, dense: int, head: dict[str, torch.Tensor], names: str) -> dict[str, torch.Tensor]:
    """Write the random tensors of three convolutions, a dense layer and a head, and return them."""
    generator = torch.Generator().manual_seed(0)
    last = 32 if dense == 512 else 64
    shapes = [(32, 4, 8, 8), (64, 32, 4, 4), (last, 64, 3, 3), (dense, last * 49)]
    tensors = dict(head)
    for name, shape in zip(names.split(), shapes, strict=True):
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) / 20
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator) / 20
    save_file(tensors, path)
    return tensors


def hidden(tensors: dict[str, torch.Tensor], names: str, obs: torch.Tensor) -> torch.Tensor:
    x = obs.float() / 255
    *convs, dense = names.split()
    for name, stride in zip(convs, (4, 2, 1), strict=True):
        x = F.relu(F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride))
    return F.relu(F.linear(x.flatten(1), tensors[f"{dense}.weight"], tensors[f"{dense}.bias"]))


SPEC = PolicySpec((4, 84, 84), "uint8", CategoricalHead((5,)))
OBS = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("names", "actor", "critic"),
    [
        ("conv1 conv2 conv3 dense", "policy", "value"),
        ("base.main.0 base.main.2 base.main.4 base.main.7", "dist.linear", "base.critic_linear"),
    ],
)
def test_actor_is_read_by_either_names(names: str, actor: str, critic: str, tmp_path: Path) -> None:
    head = {f"{actor}.weight": torch.randn(5, 512), f"{actor}.bias": torch.randn(5)}
    head |= {f"{critic}.weight": torch.randn(1, 512), f"{critic}.bias": torch.randn(1)}
    tensors = convolutional_file(tmp_path / "agent.safetensors", 512, head, names)
    policy = agents()["actor_critic"](SPEC, tmp_path / "agent.safetensors")
    expected = F.linear(hidden(tensors, names, OBS), head[f"{actor}.weight"], head[f"{actor}.bias"])
    output, _ = policy(OBS)
    torch.testing.assert_close(output.params, expected, rtol=1e-4, atol=1e-4)


def test_dueling_network_is_one_layer(tmp_path: Path) -> None:
    names = "conv.0 conv.2 conv.4 fc"
    head = {"A.weight": torch.randn(5, 200), "A.bias": torch.randn(5)}
    head |= {"V.weight": torch.randn(1, 200), "V.bias": torch.randn(1)}
    tensors = convolutional_file(tmp_path / "agent.safetensors", 200, head, names)
    policy = agents()["dueling_dqn"](SPEC, tmp_path / "agent.safetensors")
    x = hidden(tensors, names, OBS)
    advantage = F.linear(x, head["A.weight"], head["A.bias"])
    expected = F.linear(x, head["V.weight"], head["V.bias"]) + advantage - advantage.mean(1, keepdim=True)
    output, _ = policy(OBS)
    assert output.head.kind == "q_values"
    torch.testing.assert_close(output.params, expected, rtol=1e-4, atol=1e-4)


def test_recurrent_network_standardizes_by_running_moments(tmp_path: Path) -> None:
    modules = [torch.nn.Conv2d(channels, 32, 3, 2, 1) for channels in (1, 32, 32, 32)]
    modules += [torch.nn.LSTMCell(288, 256), torch.nn.Linear(256, 1), torch.nn.Linear(256, 5)]
    torch.save([parameter.detach() for module in modules for parameter in module.parameters()], tmp_path / "agent.pt")
    spec = PolicySpec((1, 42, 42), "float32", CategoricalHead((5,)))
    policy = agents()["Recurrent"](spec, tmp_path / "agent.pt")
    pictures = torch.rand(3, 2, 1, 42, 42, generator=torch.Generator().manual_seed(2))
    state = policy.initial_state(2)
    moments = np.zeros((2, 2))  # of both episodes: the mean and the deviation, with a decay of 0.9999
    hidden_state = None
    for step, picture in enumerate(pictures, 1):
        output, state = policy(picture, state)
        pixels = picture.flatten(1).numpy().astype(np.float64)
        moments = 0.9999 * moments + 0.0001 * np.stack([pixels.mean(1), pixels.std(1)])
        mean, std = moments / (1 - 0.9999**step)
        x = torch.from_numpy((pixels - mean[:, None]) / std[:, None]).float().view(2, 1, 42, 42)
        for conv in modules[:4]:
            x = F.elu(conv(x))
        hidden_state = modules[4](x.flatten(1), hidden_state)
        torch.testing.assert_close(output.params, modules[6](hidden_state[0]), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("agent", "tensors", "problem"),
    [
        ("actor_critic", {"conv1.weight": torch.zeros(2)}, "expected 5 layers that act"),
        ("dueling_dqn", {"conv1.weight": torch.zeros(2)}, "expected a dueling network with the layers A and V"),
        (
            "actor_critic",
            {f"{n}.{part}": torch.zeros(2) for n in range(5) for part in "ab"},
            "does not fit the network",
        ),
        ("Recurrent", {"conv1.weight": torch.zeros(2)}, "expected a list of 16 tensors"),
    ],
)
def test_file_of_another_agent_is_refused(
    agent: str, tensors: dict[str, torch.Tensor], problem: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "agent.safetensors")
    file = tmp_path / "agent.safetensors"
    if agent == "Recurrent":
        file = tmp_path / "agent.pt"
        torch.save(tensors, file)
    with pytest.raises(ConfigError, match=problem) as raised:
        agents()[agent](SPEC, file)
    assert str(raised.value).endswith("Use the file of an agent of this game.")
    assert "\n" not in str(raised.value)


def test_geometric_mean_is_over_the_games_that_have_the_student(benchmark: dict[str, Any]) -> None:
    def row(**scores: float | None) -> dict[str, Any]:
        students = {name: {"normalized": score and {"value": score}} for name, score in scores.items()}
        return {"students": students}

    rows = [row(cnn=0.25, tiny=-0.5), row(cnn=1.0, tiny=1.0), row(linear=None)]
    assert benchmark["geometric_means"](rows) == pytest.approx({"cnn": 0.5, "tiny": 0.1})


def test_steps_are_divided_as_in_the_run_file(benchmark: dict[str, Any]) -> None:
    run = benchmark["planned"]("pong", ["seeds=[0]"], 36_000, TEACHERS)
    assert (run.collect.steps, run.recipe.steps_per_round, run.recipe.rounds) == (12_000, 8_000, 3)
    assert benchmark["planned"]("breakout", [], None, ROOT) is None


def test_games_of_the_page_are_those_of_the_run_files() -> None:
    page = (ROOT / "docs" / "atari.md").read_text(encoding="utf-8")
    for file in FILES:
        assert f"`atari/{file.stem}`" in page
