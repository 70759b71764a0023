"""Rules and tables of interpretable students, by hand."""

from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.core.errors import ConfigError
from rldistill.core.heads import (
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    MultiCategoricalHead,
    QValuesHead,
)
from rldistill.core.spec import ObsPart, PolicySpec
from rldistill.reporting.interpret import draw, explain
from rldistill.students import Linear, Mlp, Tree
from rldistill.students.features import Objects, Standardized
from rldistill.students.storage import save_policy
from rldistill.students.tree import TreePolicy

SPEC = PolicySpec((2,), "float32", CategoricalHead((2,)))


def test_a_tree_as_rules(tmp_path: Path) -> None:
    policy = Tree(nodes=3).build(SPEC)
    with torch.no_grad():
        policy.feature.copy_(torch.tensor([1.0, -1, -1]))
        policy.threshold[0] = 0.25
        policy.left[0], policy.right[0] = 1, 2
        policy.value.copy_(torch.tensor([[0.0, 0.0], [np.log(3), 0.0], [0.0, 9.0]]))
    save_policy(policy, tmp_path, {})
    result = CliRunner().invoke(app, ["explain", str(tmp_path)])
    assert result.output.splitlines() == ["if obs[1] <= 0.25:", "  action 0 (75%)", "else:", "  action 1 (100%)"]


def test_a_linear_student_as_a_table() -> None:
    policy = Linear().build(SPEC)
    with torch.no_grad():
        policy.output.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        policy.output.bias.copy_(torch.tensor([1.0, 0.0]))
    policy.standardize(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.5]))
    # 2 (x0 - 1) / 4 + 1 = 0.5 x0 + 0.5, and 3 (x1 - 2) / 0.5 = 6 x1 - 12
    rows = [line.split() for line in explain(policy).splitlines()]
    assert rows == [
        ["action", "0", "action", "1"],
        ["obs[0]", "0.5", "0"],
        ["obs[1]", "0", "6"],
        ["constant", "0.5", "-12"],
    ]


def test_a_linear_student_on_objects_as_a_table() -> None:
    """In pixels, although it was trained on standard deviations."""
    spec = PolicySpec((1, 5, 6), "uint8", CategoricalHead((2,)))
    policy = Linear(Objects((("ball", 0, 5, 0, 6),))).build(spec)
    policy.fit_features(torch.randint(0, 200, (50, 1, 5, 6), dtype=torch.uint8))
    obs = torch.full((1, 1, 5, 6), 87, dtype=torch.uint8)
    obs[0, 0, 3, 1] = 236  # the ball's row, its column, and that it is one pixel
    *rows, _ = [line.split() for line in explain(policy).splitlines()[1:]]
    table = {row[1] if row[0] == "ball" else row[0]: [float(number) for number in row[-4:]] for row in rows[:-1]}
    table["constant"] = [float(number) for number in rows[-1][1:]]
    said = [3 * table["row"][k] + table["column"][k] + table["size"][k] + table["constant"][k] for k in (0, 1)]
    assert said == pytest.approx(policy(obs)[0].params[0].tolist(), abs=1e-3)


def test_values_outside_the_bounds_are_clipped() -> None:
    policy = Linear(Standardized()).build(SPEC)
    policy.fit_features(torch.tensor([[0.0, 5.0], [4.0, 5.5]]))  # means 2 and 5.25, deviations 2 and 0.25
    *rows, note = explain(policy).splitlines()[1:]
    table = [[float(number) for number in row.split()[1:]] for row in rows]
    assert [row[2:] for row in table[:2]] == [[-38, 42], [0.25, 10.25]]
    assert note == "values below `from` or above `to` are clipped to them"
    said = [table[0][k] * 3 + table[1][k] * 10.25 + table[2][k] for k in (0, 1)]
    assert said == pytest.approx(policy(torch.tensor([[3.0, 99.0]]))[0].params[0].tolist(), abs=1e-3)


def test_the_thresholds_of_a_tree_are_in_units_of_the_observation() -> None:
    policy = Tree(nodes=3, features=Standardized()).build(SPEC)
    policy.fit_features(torch.tensor([[0.0, 5.0], [200.0, 5.5]]))  # means 100 and 5.25, deviations 100 and 0.25
    with torch.no_grad():
        policy.feature.copy_(torch.tensor([0.0, -1, -1]))
        policy.threshold[0] = 0.5
        policy.left[0], policy.right[0] = 1, 2
        policy.value.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert explain(policy).splitlines()[0] == "if obs[0] <= 150:"
    assert policy(torch.tensor([[149.0, 5.0], [151.0, 5.0]]))[0].mode().tolist() == [0, 1]
    of_bytes = Tree(nodes=3).build(PolicySpec((2,), "uint8", CategoricalHead((2,))))
    of_bytes.load_state_dict({k: v for k, v in policy.state_dict().items() if "obs" not in k}, strict=False)
    assert explain(of_bytes).splitlines()[0] == "if obs[0] <= 127.5:"
    entries = (("screen", ObsPart((1,), "uint8")), ("speed", ObsPart((1,), "float32")))
    of_both = Tree(nodes=3).build(PolicySpec.from_parts(entries, SPEC.head))
    of_both.load_state_dict({k: v for k, v in policy.state_dict().items() if "obs" not in k}, strict=False)
    assert explain(of_both).splitlines()[0] == "if screen[0] <= 127.5:"
    seen = {"screen": torch.tensor([[127], [128]], dtype=torch.uint8), "speed": torch.zeros(2, 1)}
    assert of_both(seen)[0].mode().tolist() == [0, 1]


def test_weights_on_pictures_are_drawn(tmp_path: Path) -> None:
    policy = Linear().build(PolicySpec((3, 5, 6), "uint8", CategoricalHead((2,))))
    draw(policy, tmp_path / "weights.png")
    picture = imageio.imread(tmp_path / "weights.png")
    assert picture.shape == (2 * (5 + 4), 3 * (6 + 4))
    weight = policy.output.weight.detach().reshape(2, 3, 5, 6)
    brightest = np.unravel_index(int(weight.abs().argmax()), weight.shape)
    row, column = brightest[0] * 9 + brightest[2], brightest[1] * 10 + brightest[3]
    assert picture[row, column] == (255 if weight[brightest] > 0 else 0)


def test_students_without_rules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not interpretable"):
        explain(Mlp((3,)).build(SPEC))
    with pytest.raises(ConfigError, match="only weights on pictures"):
        draw(Linear().build(SPEC), tmp_path / "x.png")


def split(policy: TreePolicy, feature: int, threshold: float, left: list[float], right: list[float]) -> None:
    with torch.no_grad():
        policy.feature.copy_(torch.tensor([float(feature), -1, -1]))
        policy.threshold[0] = threshold
        policy.left[0], policy.right[0] = 1, 2
        policy.value.copy_(torch.tensor([[0.0] * len(left), left, right]))


def test_leaves_of_every_head_show_actions() -> None:
    """Thirty-two logits are no action that a person could read."""
    parts = MultiCategoricalHead((3, 4))
    policy = Tree(nodes=3).build(PolicySpec((2,), "float32", parts))
    split(policy, 0, 0.5, [0.0, 0, 1, 5, 0, 0, 0], [0.0, 9, 0, 0, 0, 0, 9])
    assert explain(policy).splitlines() == ["if obs[0] <= 0.5:", "  action 2, 0", "else:", "  action 1, 3"]
    bits = Tree(nodes=3).build(PolicySpec((2,), "float32", BernoulliHead((2,))))
    split(bits, 1, 0.5, [-1.0, 2.0], [3.0, 4.0])
    assert [line.strip() for line in explain(bits).splitlines()[1::2]] == ["action 0, 1", "action 1, 1"]
    values = Tree(nodes=3).build(PolicySpec((2,), "float32", QValuesHead((2,))))
    split(values, 1, 0.5, [-1.0, 2.0], [3.0, 1.0])
    assert [line.strip() for line in explain(values).splitlines()[1::2]] == ["action 1", "action 0"]
    torque = Tree(nodes=3).build(PolicySpec((2,), "float32", DeterministicHead(low=(-1.0,), high=(1.0,))))
    split(torque, 1, 0.5, [-0.25], [0.5])
    assert [line.strip() for line in explain(torque).splitlines()[1::2]] == ["action -0.25", "action 0.5"]


SHOP = PolicySpec.from_parts(
    (("stock", ObsPart((), "int64", (3,))), ("price", ObsPart((2,), "float32"))), CategoricalHead((2,))
)


def test_entries_of_a_dict_keep_their_names() -> None:
    policy = Tree(nodes=3).build(SHOP)
    split(policy, 1, 0.5, [1.0, 0.0], [0.0, 1.0])
    assert explain(policy).splitlines()[0] == "if stock[0] != 1:"
    split(policy, 4, 0.5, [1.0, 0.0], [0.0, 1.0])
    assert explain(policy).splitlines()[0] == "if price[1] <= 0.5:"


def test_linear_student_with_a_discrete_entry_is_a_table() -> None:
    policy = Linear().build(SHOP)
    torch.manual_seed(0)
    policy.standardize(torch.tensor([0.0, 0, 0, 4.0, 5.0]), torch.tensor([1.0, 1, 1, 2.0, 0.5]))
    table = {}
    for line in explain(policy).splitlines()[1:]:
        *name, one, two = line.split()
        table[" ".join(name)] = np.array([float(one), float(two)])
    assert [*table] == ["stock[0] == 0", "stock[0] == 1", "stock[0] == 2", "price[0]", "price[1]", "constant"]
    expected = table["stock[0] == 2"] + 3 * table["price[0]"] - 7 * table["price[1]"] + table["constant"]
    output, _ = policy({"stock": torch.tensor([2.0]), "price": torch.tensor([[3.0, -7.0]])})
    assert output.params[0].tolist() == pytest.approx(expected.tolist(), abs=1e-3)
