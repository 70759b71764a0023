from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from rldistill.core.entries import value_names
from rldistill.core.heads import (
    ILLEGAL,
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    GaussianHead,
    MultiCategoricalHead,
    QValuesHead,
)
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import ObsPart, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.disagreements import (
    MAX_MOMENTS,
    MOMENT_STEPS,
    Moments,
    as_picture,
    group,
    write_gallery,
)
from rldistill.evaluation.episodes import ComparedStep, PolicyRuns
from rldistill.evaluation.evaluate import RunContext, evaluate
from rldistill.evaluation.fidelity import action_ranges, differences, heldout_outputs, regret, state_metrics
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Gru

from ..conftest import CARTPOLE

Q = QValuesHead((3,))
LOGITS = CategoricalHead((3,))
SPEC = PolicySpec((2,), "float32", LOGITS)


def said(head: ActionHead, *params: list[float], value: list[float] | None = None) -> PolicyOutput:
    return PolicyOutput(head, torch.tensor(params), None if value is None else torch.tensor(value))


def test_metrics_by_hand() -> None:
    teacher = said(Q, [1.0, 3.0, 0.0], [2.0, 2.5, ILLEGAL])
    student = said(LOGITS, [1.0, 0.5, 0.0], [0.0, 4.0, ILLEGAL])
    found = state_metrics([(student, teacher)], temperature=2.0).model_dump()
    assert (found["states"], found["agreement"]) == (2, 0.5)
    assert found["regret"] == pytest.approx((2.0 + 0.0) / 2)
    assert found["random_regret"] == pytest.approx(((2 + 0 + 3) / 3 + (0.5 + 0) / 2) / 2, rel=1e-6)
    p = [np.exp([0.5, 1.5, 0.0]), np.exp([1.0, 1.25])]  # the teacher's values by 2
    q = [np.exp([1.0, 0.5, 0.0]), np.exp([0.0, 4.0])]  # the student's logits as they are
    assert found["kl"] == pytest.approx(
        np.mean([scipy.stats.entropy(*pair) for pair in zip(p, q, strict=True)]), rel=1e-5
    )
    assert found["action_rmse"] is None
    assert found["value_rmse"] is None


def test_students_of_q_values_are_softened_as_their_teacher_and_have_a_value() -> None:
    teacher, student = said(Q, [1.0, 3.0, 0.0]), said(Q, [2.0, 0.0, 1.0])
    found = differences(student, teacher, temperature=0.5)
    expected = scipy.stats.entropy(np.exp([2.0, 6.0, 0.0]), np.exp([4.0, 0.0, 2.0]))
    assert float(found["kl"]) == pytest.approx(expected, rel=1e-5)
    assert float(found["squared_value_error"]) == (2 - 3) ** 2
    with_critics = said(LOGITS, [0.0, 1.0, 0.0], value=[5.0]), said(LOGITS, [0.0, 1.0, 0.0], value=[3.5])
    assert float(differences(*with_critics)["squared_value_error"]) == 1.5**2


def test_regret_of_logits_by_hand() -> None:
    lost = regret(said(LOGITS, [0.0, 0.0, 1.0]), said(LOGITS, [1.0, 2.5, 2.0]))
    assert lost is not None
    assert lost.tolist() == [0.5]
    parts = MultiCategoricalHead((2, 3))
    # 1 - 0 of the first part, 5 - 3 of the second
    lost = regret(said(parts, [1.0, 0, 0, 9, 0]), said(parts, [0.0, 1, 5, 3, 4]))
    assert lost is not None
    assert lost.tolist() == [3.0]
    bits = BernoulliHead((3,))
    lost = regret(said(bits, [1.0, 1.0, -1.0]), said(bits, [2.0, -0.25, -3.0]))
    assert lost is not None
    assert lost.tolist() == [0.25]


def test_continuous_actions_have_a_distance_and_no_regret() -> None:
    head = GaussianHead(low=(-2.0, -2.0), high=(2.0, 2.0))
    teacher, student = said(head, [0.0, 1.0, 0.0, 0.0]), said(head, [1.0, 1.0, math.log(2), 0.0])
    found = state_metrics([(student, teacher)]).model_dump()
    assert found["action_rmse"] == pytest.approx(math.sqrt(1 / 2))
    # log 2 + (1 + 1) / (2 * 4) - 1 / 2, and 0 of the second
    assert found["kl"] == pytest.approx(math.log(2) + 2 / 8 - 0.5, rel=1e-6)
    assert (found["regret"], found["agreement"], found["random_regret"]) == (None, None, None)
    deterministic = DeterministicHead(low=head.low, high=head.high)
    assert "kl" not in differences(said(deterministic, [1.0, 1.0]), teacher)


def moments(regrets: np.ndarray[tuple[int], np.dtype[np.float64]], at_once: int) -> Moments:
    """One episode in which action 0 was taken where the teacher prefers 1."""
    found = Moments(7)
    for start in range(0, len(regrets), at_once):
        part = slice(start, start + at_once)
        steps = np.arange(len(regrets))[part]
        says = [said(LOGITS, *([[0.0, float(r), 0.0]] * 1)) for r in regrets[part]]
        teacher = PolicyOutput(LOGITS, torch.cat([output.params for output in says]))
        student = PolicyOutput(LOGITS, torch.tensor([[1.0, 0.0, 0.0]]).expand(len(steps), 3))
        obs = np.column_stack([steps, steps]).astype(np.float32)
        found.offer(regrets[part], ComparedStep(obs, student, teacher, np.zeros(len(steps), np.int64), steps))
    return found


@pytest.mark.parametrize("at_once", [1, 7, 1_000])
def test_the_largest_regrets_are_kept_whenever_they_come(at_once: int) -> None:
    regrets = np.random.default_rng(0).random(640)
    largest = sorted(regrets.reshape(-1, MOMENT_STEPS).max(1), reverse=True)[:MAX_MOMENTS]
    found = Moments.largest([moments(regrets, at_once)])
    assert [moment.regret for moment in found] == largest
    assert {moment.training_seed for moment in found} == {7}
    assert all(regrets[moment.step] == moment.regret == moment.obs[0] * 0 + moment.regret for moment in found)
    assert all(moment.obs[0] == moment.step for moment in found)
    assert Moments.largest([moments(np.zeros(20), at_once)]) == []  # where both agree, nothing is shown


def test_similar_moments_are_grouped(tmp_path: Path) -> None:
    kinds = [0.0, 100.0]
    found = Moments(None)
    obs = np.array([[kinds[k % 2], k * 0.001] for k in range(10)], np.float32)
    teacher = said(LOGITS, *[[0.0, 1.0 + k, 0.0] for k in range(10)])
    student = said(LOGITS, *[[1.0, 0.0, 0.0]] * 10)
    found.offer(np.arange(1.0, 11.0), ComparedStep(obs, student, teacher, np.arange(10), np.zeros(10, np.int64)))
    groups = group(Moments.largest([found]), max_groups=2)
    assert [[moment.regret for moment in some] for some in groups] == [[10, 8, 6, 4, 2], [9, 7, 5, 3, 1]]
    write_gallery(Moments.largest([found]), "nats", SPEC, tmp_path / "a")
    write_gallery(Moments.largest([found]), "nats", SPEC, tmp_path / "b")
    texts = [(tmp_path / name / "disagreements.json").read_text() for name in "ab"]
    assert texts[0] == texts[1]
    first = json.loads(texts[0])["groups"][0][0]
    assert (first["teacher_action"], first["student_action"], first["regret"]) == (1, 0, 10.0)
    assert first["teacher"] == [0.0, 10.0, 0.0]
    assert first["frame"] is None


def test_pictures_are_written_and_old_ones_removed(tmp_path: Path) -> None:
    import imageio.v2 as imageio

    found = Moments(0)
    stack = np.zeros((1, 4, 6, 5), np.uint8)
    stack[0, 3] = 200  # the newest frame
    zero = np.zeros(1, np.int64)
    found.offer(np.ones(1), ComparedStep(stack, said(Q, [1.0, 0, 0]), said(Q, [0.0, 1, 0]), zero, zero))
    (tmp_path / "9-9.png").write_bytes(b"of another evaluation")
    write_gallery(Moments.largest([found]), "return", PolicySpec((4, 6, 5), "uint8", Q), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"disagreements.json", "1-1.png"}
    picture = np.asarray(imageio.imread(tmp_path / "1-1.png"))
    assert picture.shape == (6, 20)
    assert (picture[:, 15:] == 200).all()
    assert (picture[:, :15] == 0).all()
    assert as_picture(np.zeros((6, 5, 3), np.uint8)) is not None
    assert as_picture(np.zeros(6, np.float32)) is None


def test_a_student_is_compared_on_both_kinds_of_states(
    teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path
) -> None:
    contrary = copy.deepcopy(teacher)
    with torch.no_grad():
        contrary.output.weight.copy_(teacher.output.weight.flip(0))
    policies = {
        "teacher": PolicyRuns("teacher", {None: teacher}, 0),
        "same": PolicyRuns("student", {0: teacher, 1: teacher}, 0),
        "contrary": PolicyRuns("student", {0: contrary}, 0),
    }
    config = EvaluateConfig(episodes=4, videos=False)
    found = evaluate(CARTPOLE, policies, config, tmp_path, RunContext(dataset=dataset)).to_dict()["policies"]
    assert (found["teacher"]["fidelity"], found["random"]["fidelity"]) == (None, None)
    same, other = found["same"]["fidelity"], found["contrary"]["fidelity"]
    for states in ("teacher_states", "own_states"):
        assert (same[states]["agreement"], same[states]["kl"], same[states]["regret"]) == (1.0, 0.0, 0.0)
        assert other[states]["agreement"] == 0.0
        # of two actions the worse one, always: twice what a coin would lose
        assert other[states]["regret"] == pytest.approx(2 * other[states]["random_regret"])
    heldout = min(5_000, int(dataset.heldout.sum()))
    assert (same["teacher_states"]["states"], other["teacher_states"]["states"]) == (2 * heldout, heldout)
    steps = sum(sum(run["returns"]) for run in found["same"]["runs"])  # CartPole pays 1 a step
    assert same["own_states"]["states"] == steps
    assert same["temperature"] == pytest.approx(dataset.action_gap() / 2)
    assert json.loads((tmp_path / same["disagreements"] / "disagreements.json").read_text())["groups"] == []
    shown = json.loads((tmp_path / other["disagreements"] / "disagreements.json").read_text())
    assert shown["unit"] == "return"
    assert all(len(moment["obs"]) == 4 for some in shown["groups"] for moment in some)
    regrets = [moment["regret"] for some in shown["groups"] for moment in some]
    assert max(regrets) >= other["own_states"]["regret"]
    alone = evaluate(CARTPOLE, policies, config, tmp_path).to_dict()["policies"]["contrary"]["fidelity"]
    assert alone["teacher_states"] is None
    assert alone["own_states"]["regret"] == other["own_states"]["regret"]


def test_teacher_labels_the_first_episodes(teacher: NetworkPolicy, tmp_path: Path) -> None:
    policies = {"teacher": teacher, "same": teacher}
    config = EvaluateConfig(episodes=5, labeled_episodes=2, videos=False)
    played = evaluate(CARTPOLE, policies, config, tmp_path).to_dict()["policies"]["same"]
    assert played["fidelity"]["own_states"]["states"] == sum(played["runs"][0]["returns"][:2])


def test_recurrent_student_gets_whole_episodes(dataset: Dataset) -> None:
    torch.manual_seed(0)
    policy = Gru(6, (8,)).build(spec_from_env(CARTPOLE)).eval()
    students, teachers = heldout_outputs(policy, dataset, max_states=1)
    first = dataset.columns["episode"][dataset.heldout].min()
    rows = np.flatnonzero(dataset.columns["episode"] == first)
    rows = rows[np.argsort(dataset.columns["step"][rows])]
    state = policy.initial_state(1)
    with torch.no_grad():
        for number, row in enumerate(rows):
            output, state = policy(dataset.observations(rows[number : number + 1]), state)
            torch.testing.assert_close(output.params[0], students.params[number])
            assert teachers.params[number].tolist() == dataset.columns["teacher"][row].tolist()
    assert len(students.params) == len(rows)


def test_values_of_a_dict_observation_have_the_names_of_their_entries() -> None:
    parts = (("stock", ObsPart((), "int64", (3,))), ("grid", ObsPart((1, 2), "float32")))
    assert value_names(PolicySpec.from_parts(parts, Q)) == ["stock[0]", "grid[0, 0]", "grid[0, 1]"]
    assert value_names(SPEC) == ["obs[0]", "obs[1]"]


def test_range_of_actions_without_a_bound_on_either_side_is_one() -> None:
    head = DeterministicHead(low=(-2.0, -math.inf, 0.0, -math.inf), high=(2.0, math.inf, math.inf, 5.0))
    assert action_ranges(PolicyOutput(head, torch.zeros(1, 4))).tolist() == [4.0, 1.0, 1.0, 1.0]
