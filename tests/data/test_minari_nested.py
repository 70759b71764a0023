"""Datasets of Minari with dicts within dicts, and with texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rldistill.core.errors import ConfigError
from rldistill.data.minari.read import import_minari

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:minari")]

KITCHEN = spaces.Dict(
    {
        "observation": spaces.Box(-9, 9, (3,)),
        "desired_goal": spaces.Dict(
            {"kettle": spaces.Box(-9, 9, (2,)), "arm": spaces.Dict({"left": spaces.Discrete(4)})}
        ),
    }
)
GRID = spaces.Dict(
    {"image": spaces.Box(0, 255, (2, 2, 3), np.uint8), "mission": spaces.Text(20), "direction": spaces.Discrete(4)}
)


def record(minari: Any, name: str, space: spaces.Space[Any], data_format: str) -> list[Any]:
    """Record three episodes of random observations, which are returned."""
    space.seed(0)
    episodes = []
    for _ in range(3):
        seen = [space.sample() for _ in range(5)]
        buffer = minari.data_collector.EpisodeBuffer(
            observations=stacked(seen), actions=np.arange(4) % 2, rewards=np.full(4, len(episodes) + 1.0),
            terminations=np.array([False] * 3 + [True]), truncations=np.zeros(4, bool), infos={},
        )  # fmt: skip
        episodes.append((seen, buffer))
    buffers = [buffer for _, buffer in episodes]
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=space, action_space=spaces.Discrete(2), data_format=data_format
    )
    return [seen for seen, _ in episodes]


def stacked(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values]) for key in values[0]}
    return values if isinstance(values[0], str) else np.stack(values)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_dicts_within_dicts_have_dotted_names(data_format: str, minari: Any, tmp_path: Path) -> None:
    episodes = record(minari, "kitchen/nested-v0", KITCHEN, data_format)
    data = import_minari("minari:kitchen/nested-v0", tmp_path / "in")
    assert [*data.spec.entries] == ["desired_goal.arm.left", "desired_goal.kettle", "observation"]
    first, obs = episodes[0][0], data.observations(np.arange(1))[0].numpy()
    goal = first["desired_goal"]
    np.testing.assert_allclose(obs, [goal["arm"]["left"], *goal["kettle"], *first["observation"]], rtol=1e-6)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_texts_are_left_out_by_name(data_format: str, minari: Any, tmp_path: Path) -> None:
    record(minari, "grid/text-v0", GRID, data_format)
    with pytest.warns(UserWarning, match=r"grid/text-v0: the text of mission in its observations was left out"):
        data = import_minari("minari:grid/text-v0", tmp_path / "in")
    assert [*data.spec.entries] == ["direction", "image"]
    assert len(data) == 12


def test_observation_of_text_alone_is_refused(minari: Any, tmp_path: Path) -> None:
    record(minari, "grid/only-v0", spaces.Dict({"mission": spaces.Text(20)}), "hdf5")
    with pytest.raises(ConfigError, match="observations"):
        import_minari("minari:grid/only-v0", tmp_path / "in")
