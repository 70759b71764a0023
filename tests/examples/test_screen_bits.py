"""Features of `examples/features/screen_bits.py`: against plain loops, and stored as features of the user's own."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import PolicySpec
from rldistill.run.config import load_run
from rldistill.students import Linear, Mlp, Ridge, Tree
from rldistill.students.storage import USER_CLASSES, load_native, save_policy, trust

FILE = Path(__file__).parents[2] / "examples" / "features" / "screen_bits.py"
HEAD = CategoricalHead((3,))
SCREEN = PolicySpec((2, 12, 16), "uint8", HEAD)


def import_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("screen_bits", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["screen_bits"] = module
    spec.loader.exec_module(module)
    return module


example = import_example()
Basic, Bprost = example.Basic, example.Bprost
SMALL = {"basic": Basic(4, 2), "bprost": Bprost(4, 2, lags=(1,), num_features=50)}


def screens(count: int, seed: int = 0) -> Tensor:
    """Return black screens with two bright squares at random places in each frame."""
    rng = np.random.default_rng(seed)
    obs = np.zeros((count, *SCREEN.obs_shape), np.uint8)
    for frame in obs.reshape(-1, 12, 16):
        for value in (100, 240):
            row, column = rng.integers(0, 10), rng.integers(0, 14)
            frame[row : row + 2, column : column + 2] = value
    return torch.from_numpy(obs)


@pytest.mark.parametrize("student", [Linear, Mlp, Ridge, Tree])
@pytest.mark.parametrize("name", SMALL)
def test_files_name_the_features_and_only_trust_lets_them(
    name: str, student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, obs = student(features=SMALL[name]).build(SCREEN), screens(20, 1)
    policy.fit_features(screens(200))
    save_policy(policy, tmp_path, {})
    kind = type(SMALL[name])
    monkeypatch.delitem(USER_CLASSES, f"screen_bits:{kind.__name__}", raising=False)  # an earlier test may trust it
    with pytest.raises(CorruptArtifactError, match=r"config\.features: expected one of raw, .*screen_bits:B"):
        load_native(tmp_path)
    monkeypatch.setitem(USER_CLASSES, f"screen_bits:{kind.__name__}", kind)
    trust(kind)
    loaded = load_native(tmp_path)
    assert loaded.config == policy.config
    assert torch.equal(loaded(obs)[0].params, policy(obs)[0].params)


@pytest.mark.parametrize("name", SMALL)
def test_only_the_last_layer_is_trained(name: str) -> None:
    policy = Linear(SMALL[name]).build(SCREEN)
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == 3 * (policy.width + 1)


def cells_by_hand(frame: np.ndarray[Any, Any], background: np.ndarray[Any, Any], cell: int, colors: int) -> set[Any]:
    cells = set()
    for row, column in itertools.product(range(frame.shape[0]), range(frame.shape[1])):
        if abs(int(frame[row, column]) - int(background[row, column])) > 16:
            cells.add((int(frame[row, column]) * colors // 256, row // cell, column // cell))
    return cells


def test_basic_features_match_a_plain_loop() -> None:
    policy, obs = Linear(Basic(4, 2)).build(SCREEN), screens(40)
    policy.fit_features(obs)
    bits = policy(obs)[0].features.reshape(40, 2, 3, 4)  # type: ignore[union-attr]
    for k in range(40):
        expected = cells_by_hand(obs[k, -1].numpy(), np.zeros((12, 16)), 4, 2)
        assert {tuple(index) for index in bits[k].nonzero().tolist()} == expected


def test_offsets_match_a_plain_loop() -> None:
    features, obs = Bprost(4, 2, lags=(1,), num_features=10_000), screens(40)
    policy = Linear(features).build(SCREEN)
    policy.fit_features(obs)
    offsets, rows, columns = policy.body[1], 3, 4  # type: ignore[index]
    bits = policy(obs)[0].features
    assert bits is not None
    names: list[Any] = [(c, r, k) for c in range(2) for r in range(rows) for k in range(columns)]
    for lag, a, b in offsets.pairs:
        for up, left in itertools.product(range(2 * rows), range(2 * columns)):
            # Beyond half of the size an offset is negative.
            signed = (up - 2 * rows * (up >= rows), left - 2 * columns * (left >= columns))
            names.append((lag, a, b, *signed))
    chosen = [names[int(number)] for number in offsets.selected if number >= 0]
    assert len(chosen) == len(set(chosen)) > 100
    for k in range(40):
        newest, older = (cells_by_hand(obs[k, t].numpy(), np.zeros((12, 16)), 4, 2) for t in (-1, -2))
        expected: set[Any] = set(newest)
        for lag, cells in ((0, newest), (1, older)):
            expected |= {(lag, a, b, r - q, c - d) for a, q, d in cells for b, r, c in newest}
        present = {name for name, bit in zip(chosen, bits[k].tolist(), strict=False) if bit}
        assert present == expected & set(chosen)


def test_the_bits_that_change_most_are_kept() -> None:
    obs = screens(60)
    all_bits, few_bits = (Linear(Bprost(4, 2, lags=(1,), num_features=n)).build(SCREEN) for n in (10_000, 12))
    for policy in (all_bits, few_bits):
        policy.fit_features(obs)
    bits, kept = all_bits(obs)[0].features, few_bits(obs)[0].features
    assert bits is not None
    assert kept is not None
    changes = bits.var(0).sort(descending=True).values
    torch.testing.assert_close(kept.var(0).sort(descending=True).values, changes[:12])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Basic(cell=0), "cell"),
        (lambda: Basic(threshold=300), "threshold"),
        (lambda: Bprost(lags=(0,)), "lags"),
        (lambda: Linear(Basic(13)).build(SCREEN), "cell"),
        (lambda: Linear(Bprost(lags=(2,))).build(SCREEN), "lags"),
        (lambda: Linear(Basic()).build(PolicySpec((4,), "float32", HEAD)), "channels, height, width"),
        (lambda: Linear(Basic()).build(PolicySpec((4, 20, 20), "float32", HEAD)), "bytes"),
    ],
)
def test_invalid_features_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_run_file_names_the_features_by_module_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FILE.parent)
    run = load_run(Path("pong-basic.yaml"), environment={})
    assert run.students == {"linear": Linear(Basic(cell=6))}
