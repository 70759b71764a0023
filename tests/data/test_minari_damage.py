"""Damaged and hostile datasets of Minari."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import CorruptArtifactError, SpecMismatchError, UntrustedFileError
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.data.minari import ORIGIN
from rldistill.data.minari.export import export_minari
from rldistill.data.minari.read import import_minari
from rldistill.policies.network import NetworkPolicy

from ..conftest import CARTPOLE
from .conftest import record_elsewhere

pytestmark = pytest.mark.slow

SMALL = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=32, epsilon=0.4)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_labels_of_ours_that_do_not_fit_are_named(teacher: NetworkPolicy, minari: Any, tmp_path: Path) -> None:
    collect(CARTPOLE, teacher, SMALL, tmp_path / "first")
    export_minari(tmp_path / "first", "minari:test/it-v0")
    file = tmp_path / "minari" / "test" / "it-v0" / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    ours = json.loads(metadata[ORIGIN])
    ours["spec"]["head"]["nvec"] = [3]
    file.write_text(json.dumps(metadata | {ORIGIN: json.dumps(ours)}))
    with pytest.raises(
        CorruptArtifactError, match=r"episode 0: infos: teacher: found shape \(\d+, 2\), expected \(\d+, 3\)"
    ):
        import_minari("minari:test/it-v0", tmp_path / "in")


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_minari_dataset_without_episodes_is_refused(minari: Any, tmp_path: Path) -> None:
    box = gymnasium.spaces.Box(-1, 1, (2,))
    minari.create_dataset_from_buffers(
        "other/none-v0", [], observation_space=box, action_space=gymnasium.spaces.Discrete(2), data_format="arrow"
    )
    with pytest.raises(CorruptArtifactError, match="it has no episodes"):
        import_minari("minari:other/none-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


def with_metadata(**fields: Any) -> Callable[[Path], None]:
    """Return a change of the metadata of a dataset; None removes a field."""

    def change(data: Path) -> None:
        metadata = json.loads((data / "metadata.json").read_text()) | fields
        left = {key: value for key, value in metadata.items() if value is not None}
        (data / "metadata.json").write_text(json.dumps(left))

    return change


def truncated(file: str) -> Callable[[Path], None]:
    return lambda data: (data / file).write_bytes((data / file).read_bytes()[:-200])


def without(file: str) -> Callable[[Path], None]:
    return lambda data: (data / file).unlink()


DAMAGED = {
    "few steps": (with_metadata(total_steps=8), "found 12 steps in its episodes, expected 8"),
    "many steps": (with_metadata(total_steps=16), "found 12 steps in its episodes, expected 16"),
    "no number of steps": (with_metadata(total_steps=None), "total_steps: is missing"),
    "few episodes": (with_metadata(total_episodes=2, total_steps=8), "found 3 episodes, expected 2"),
    "many episodes": (with_metadata(total_episodes=99), "found 3 episodes, expected 99"),
    "half a spec": (with_metadata(env_spec='{"id": "Cart'), "env_spec: found .*Cart.*, expected valid JSON"),
    "a list as spec": (with_metadata(env_spec="[]"), r"env_spec: found \[\], expected an object"),
    "a number as id": (
        with_metadata(env_spec='{"id": 5}'),
        "env_spec: found 5, expected text",
    ),
    "no wrappers": (with_metadata(env_spec='{"id": "A-v0"}'), "Minari cannot read it .*additional_wrappers"),
    "half a space": (with_metadata(observation_space='{"type": "Box'), "observation_space: found .* expected a space"),
    "no such space": (with_metadata(action_space='{"type": "Bax"}'), "action_space: found .*Bax.* expected a space"),
    "another format": (
        with_metadata(data_format="csv"),
        "data_format: found 'csv', expected 'arrow', 'hdf5' or 'parquet'",
    ),
    "another version": (with_metadata(minari_version="9.9.9"), "Minari cannot read it .*9.9.9"),
    "half the metadata": (truncated("metadata.json"), "metadata.json: not valid JSON"),
    "metadata of text": (lambda data: (data / "metadata.json").write_text('"it"'), "found 'it', expected an object"),
    "half an episode": (truncated("1/part-0.arrow"), "episode 1: Minari cannot read it"),
    "no episode": (without("1/part-0.arrow"), "episode 1: Minari cannot read it"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_minari_dataset_is_named_and_leaves_nothing(damage: str, minari: Any, tmp_path: Path) -> None:
    change, expected = DAMAGED[damage]
    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3))
    change(tmp_path / "minari" / "other" / "it-v0" / "data")
    with pytest.raises(CorruptArtifactError, match=f"^minari:other/it-v0: .*{expected}"):
        import_minari("minari:other/it-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_billion_bits_take_no_memory(minari: Any, tmp_path: Path) -> None:
    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3))
    space = json.dumps({"type": "MultiBinary", "n": 10**9})
    with_metadata(observation_space=space)(tmp_path / "minari" / "other" / "it-v0" / "data")
    with pytest.raises(SpecMismatchError, match=r"^obs_shape: more than 67,108,864 values"):
        import_minari("minari:other/it-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


def with_array(array: str, content: Any) -> Callable[[Any], None]:
    """Return a change of the second episode of an HDF5 file of Minari; None removes the array."""

    def change(file: Any) -> None:
        del file[f"episode_1/{array}"]
        if content is not None:
            file[f"episode_1/{array}"] = content

    return change


def empty(file: Any) -> None:
    for array in ("actions", "rewards", "terminations", "truncations"):
        with_array(array, np.zeros(0))(file)


NAN = [0.0, 1.0, np.nan, 2.0]


IMPOSSIBLE = {
    "no such action": (with_array("actions", [0, 1, -1, 2]), "actions: found -1 at step 2, expected 0 to 2"),
    "one action too high": (with_array("actions", [0, 1, 2, 3]), "actions: found 3 at step 3, expected 0 to 2"),
    "half an action": (
        with_array("actions", [0, 1, 0.5, 2]),
        "actions: found float64 numbers, expected those of int64",
    ),
    "actions of two": (with_array("actions", np.zeros((4, 2), int)), r"actions: found shape \(4, 2\), expected \(4,\)"),
    "few observations": (
        with_array("observations", np.zeros((4, 2))),
        r"observations: found shape \(4, 2\), expected \(5, 2\)",
    ),
    "an observation of NaN": (
        with_array("observations", np.full((5, 2), np.nan)),
        "observations: found NaN or infinite",
    ),
    "a reward of NaN": (with_array("rewards", NAN), "rewards: found NaN or infinite"),
    "a reward beyond float32": (with_array("rewards", [1e300] * 4), "rewards: found NaN or infinite"),
    "rewards of text": (with_array("rewards", ["a"] * 4), "rewards: found object, expected numbers"),
    "few terminations": (with_array("terminations", [False]), r"terminations: found shape \(1,\), expected \(4,\)"),
    "truncated twice": (
        with_array("truncations", [0, 0, 0, 2]),
        "truncations: found int64 numbers, expected those of bool",
    ),
    "no rewards": (with_array("rewards", None), "Minari cannot read it .*rewards"),
    "no steps": (empty, "found no steps, expected at least one"),
}


def change_hdf5(tmp_path: Path, change: Callable[[Any], Any]) -> Path:
    h5py = pytest.importorskip("h5py", reason="needs the extra minari")
    path = tmp_path / "minari" / "other" / "it-v0" / "data" / "main_data.hdf5"
    with h5py.File(path, "r+") as file:
        change(file)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_invalid_numbers_are_refused(case: str, minari: Any, tmp_path: Path) -> None:
    change, expected = IMPOSSIBLE[case]
    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3), data_format="hdf5")
    change_hdf5(tmp_path, change)
    with pytest.raises(CorruptArtifactError, match=f"^minari:other/it-v0: episode 1: {expected}"):
        import_minari("minari:other/it-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("size", [0, -200])
def test_half_an_hdf5_file_is_one_line(size: int, minari: Any, tmp_path: Path) -> None:
    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3), data_format="hdf5")
    path = tmp_path / "minari" / "other" / "it-v0" / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:size])
    result = CliRunner().invoke(app, ["dataset", "import", "minari:other/it-v0", "--out", str(tmp_path / "in")])
    assert (result.exit_code, "minari:other/it-v0: Minari cannot read it" in result.output) == (2, True)
    path.unlink()
    result = CliRunner().invoke(app, ["dataset", "import", "minari:other/it-v0", "--out", str(tmp_path / "in")])
    assert (result.exit_code, "main_data.hdf5" in result.output) == (2, True)
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("kind", ["storage", "external", "soft", "virtual", "claim"])
def test_minari_file_with_links_out_of_it_is_refused(kind: str, minari: Any, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs the extra minari")
    (tmp_path / "secret").write_bytes(np.arange(4.0).tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["rewards"] = np.arange(4.0)

    def change(file: Any) -> None:
        group = file["episode_1"]
        del group["rewards"]
        if kind == "storage":
            group.create_dataset("rewards", (4,), "f8", external=[(str(tmp_path / "secret"), 0, 32)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "rewards", (4,))
            group.create_virtual_dataset("rewards", layout)
        elif kind == "claim":
            group.create_dataset("rewards", (1 << 30,), "f8", chunks=(1 << 10,))
        else:
            elsewhere = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/rewards")
            group["rewards"] = elsewhere if kind == "external" else h5py.SoftLink("/episode_0/rewards")

    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3), data_format="hdf5")
    change_hdf5(tmp_path, change)
    with pytest.raises(UntrustedFileError, match=r"^minari:other/it-v0: main_data.hdf5: episode_1/rewards .*"):
        import_minari("minari:other/it-v0", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_code_of_a_minari_dataset_is_executed(minari: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "gs").chmod(0o755)
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {"id": "evil:It-v0", "entry_point": "evil:It", "additional_wrappers": [], "kwargs": {}}
    for picture, is_read in (
        (None, True),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n", False),
    ):
        buffers = [
            minari.data_collector.EpisodeBuffer(
                observations=np.full((3, 32, 32, 3), 9 * number, np.uint8),
                actions=[0, number],
                rewards=[0.0, 1.0],
                terminations=[False, True],
                truncations=[False, False],
            )
            for number in range(2)
        ]
        name = f"other/picture-v{int(is_read)}"
        box = gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        minari.create_dataset_from_buffers(
            name, buffers, observation_space=box, action_space=gymnasium.spaces.Discrete(2), data_format="arrow"
        )
        data = tmp_path / "minari" / name / "data"
        with_metadata(env_spec=json.dumps(spec))(data)
        if picture is None:
            assert len(import_minari(name, tmp_path / "in")) == 4
            assert Manifest.read(tmp_path / "in").env.id == "evil:It-v0"
            continue
        table = pa.ipc.open_file(data / "0" / "part-0.arrow").read_all()
        table = table.set_column(table.column_names.index("observations"), "observations", pa.array([picture] * 3))
        with pa.ipc.new_file(data / "0" / "part-0.arrow", table.schema) as file:
            file.write_table(table)
        with pytest.raises(CorruptArtifactError, match=r"episode 0: .*Ghostscript"):
            import_minari(name, tmp_path / "other")
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_failed_import_deletes_nothing(
    teacher: NetworkPolicy, minari: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rldistill.data.minari import read as minari_read

    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Discrete(3))
    monkeypatch.setattr(minari_read, "BLOCK_STEPS", 4)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "add_blocks", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        (tmp_path / "empty").mkdir()
        for folder in ("new", "empty"):
            with pytest.raises(KeyboardInterrupt):
                minari_read.import_minari("minari:other/it-v0", tmp_path / folder)
    assert not (tmp_path / "new").exists()
    assert not any((tmp_path / "empty").iterdir())
    collect(CARTPOLE, teacher, SMALL, tmp_path / "mine")
    with_metadata(total_steps=16)(tmp_path / "minari" / "other" / "it-v0" / "data")
    with pytest.raises(CorruptArtifactError, match="found 12 steps"):
        minari_read.import_minari("minari:other/it-v0", tmp_path / "mine", mode="overwrite")
    assert len(Dataset.read([tmp_path / "mine"])) == 320


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_actions_outside_bounds_are_a_warning_and_unbounded_ones_are_read(minari: Any, tmp_path: Path) -> None:
    record_elsewhere(minari, "other/it-v0", gymnasium.spaces.Box(-1, 1, (2,)), data_format="hdf5")
    change_hdf5(tmp_path, with_array("actions", np.full((4, 2), 1.5, np.float32)))
    with pytest.warns(UserWarning, match="other/it-v0: some actions are outside the bounds"):
        assert import_minari("minari:other/it-v0", tmp_path / "in").columns["action"].max() == 1.5
    change_hdf5(tmp_path, with_array("actions", np.full((4, 2), np.nan)))
    with pytest.raises(CorruptArtifactError, match="episode 1: actions: found NaN"):
        import_minari("minari:other/it-v0", tmp_path / "in", mode="overwrite")
    record_elsewhere(minari, "other/free-v0", gymnasium.spaces.Box(-np.inf, np.inf, (2,)))
    assert min(import_minari("minari:other/free-v0", tmp_path / "free").spec.head.high) > 1e38
