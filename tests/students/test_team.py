"""Teams: agents act on their own observations, and learn the marginals of a joint teacher."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.heads import DeterministicHead, GaussianHead, MultiCategoricalHead
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import AgentSpec, EnvConfig, ObsPart, PolicySpec, Views, Wrapper
from rldistill.data.agents import agent_dataset, agent_table
from rldistill.data.condense import condense
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill, require_fit
from rldistill.envs.multi_agent import agent_type
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.views import ObservationViews
from rldistill.evaluation.changed_play import Teams
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import PlayConfig, PolicyRuns, play
from rldistill.evaluation.evaluate import evaluate
from rldistill.evaluation.teams import MAX_SUBSETS, _teams, mixed_teams
from rldistill.io.atomic import read_json, write_json
from rldistill.io.progress import SILENT
from rldistill.policies.cost import measure_cost
from rldistill.policies.joint import JointPolicy, MixedTeam, RandomTeam, agent_views, joint_params
from rldistill.reporting import write_report
from rldistill.students import AnyStudent, Gru, Keras, Linear, Mlp, Ridge, Team, Tree
from rldistill.students.storage import load_native, save_policy
from rldistill.students.team import TeamPolicy
from rldistill.teachers.load import SavedTeacher, TeamTeacher

from ..conftest import Reports
from ..envs import multi_agent_envs

ID = f"pettingzoo:{multi_agent_envs.__name__}:make_signals"
ENV, LEAVING = EnvConfig(ID), EnvConfig(ID, {"leaves_at": 4, "alive": True})


class Planner:
    """Teacher that sees all: each agent acts by the sign of its number."""

    def __init__(self, env: EnvConfig) -> None:
        self.spec = spec_from_env(env)
        self.views = agent_views(self.spec)

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, obs: torch.Tensor, state: None = None) -> tuple[PolicyOutput, None]:
        entries = split_parts(obs, self.spec)
        logits = []
        for view in self.views:
            own = entries[view.agent.name]
            cue = own[:, 2] if view.agent.name == "far_0" else own[:, 0]
            options = [-cue, cue, torch.full_like(cue, -5.0)][: view.spec.head.nvec[0]]
            logits.append(8 * torch.stack(options, 1))
        output = PolicyOutput(self.spec.head, torch.cat(logits, 1))
        return (output.masked(entries["action_mask"]) if "action_mask" in entries else output), None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("signals") / "dataset"
    return collect(ENV, Planner(ENV), CollectConfig(steps=2_000, epsilon=0.1), folder, progress=False)


@pytest.fixture(scope="module")
def leaving(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("leaving") / "dataset"
    return collect(LEAVING, Planner(LEAVING), CollectConfig(steps=1_000, epsilon=0.1), folder, progress=False)


def agreement(policy: Policy, dataset: Dataset) -> float:
    rows = np.arange(len(dataset))
    batch = dataset.batch(rows)
    return float(policy(batch.obs, policy.initial_state(len(rows)))[0].agreement(batch.teacher).mean())


FAMILIES: dict[str, AnyStudent] = {
    "mlp": Team(student=Mlp(hidden=(16,))),
    "linear apart": Team(student=Linear(), sharing="none"),
    "identity": Team(student=Mlp(hidden=(16,)), identity=True),
    "tree": Team(student=Tree(max_depth=3)),
    "ridge": Team(student=Ridge()),
    "gru": Team(student=Gru(size=8, hidden=(16,), window=8)),
}


@pytest.mark.slow
def test_condensed_data_are_for_teams_without_memory(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.source is not None
    small = condense(dataset.source[0][0], tmp_path / "small", 64)
    config = DistillConfig(epochs=60, batch_size=16, learning_rate=1e-2)
    policy = distill(small, FAMILIES["mlp"], config, tmp_path / "team", progress=False)
    assert agreement(policy, dataset) > 0.9
    with pytest.raises(ConfigError, match="a recurrent student needs whole episodes, and this dataset is condensed"):
        distill(small, FAMILIES["gru"], config, tmp_path / "gru", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_learns_plays_and_is_stored(name: str, dataset: Dataset, tmp_path: Path) -> None:
    config = DistillConfig(epochs=10, batch_size=64, learning_rate=1e-2)
    policy = distill(dataset, FAMILIES[name], config, tmp_path / "team", progress=False)
    assert agreement(policy, dataset) > 0.93
    assert play(ENV, policy, 20).returns.mean() > 9.0  # of 10; random play gets 4.4
    again = load_native(tmp_path / "team")
    assert isinstance(again, TeamPolicy)
    obs = dataset.observations(np.arange(20))
    assert torch.equal(policy(obs, policy.initial_state(20))[0].params, again(obs, again.initial_state(20))[0].params)
    assert distill(dataset, FAMILIES[name], config, tmp_path / "team", mode="resume", progress=False) is not None


def test_agent_acts_on_its_own_observation_alone(dataset: Dataset) -> None:
    torch.manual_seed(0)
    policy = Team(student=Mlp(hidden=(8,))).build(dataset.spec).eval()
    assert isinstance(policy, TeamPolicy)
    first = dataset.observations(np.arange(50))
    other = dataset.observations(np.arange(100, 150))
    sizes = [int(np.prod(part.shape)) for _, part in dataset.spec.parts]
    keys = [key for key, _ in dataset.spec.parts]
    for view in policy.views:
        parts = dict(zip(keys, first.split(sizes, 1), strict=True))
        others = dict(zip(keys, other.split(sizes, 1), strict=True))
        mixed = torch.cat([parts[key] if key in view.keys else others[key] for key in keys], 1)
        columns = view.param_columns(dataset.spec.head)
        assert torch.equal(policy(first)[0].params[:, columns], policy(mixed)[0].params[:, columns])


def test_shared_network_gives_equal_agents_equal_actions_without_identity_alone(dataset: Dataset) -> None:
    obs = {"near_0": torch.rand(5, 2), "far_0": torch.rand(5, 3)}
    obs["near_1"] = obs["near_0"]
    for identity in (False, True):
        torch.manual_seed(0)
        policy = Team(student=Mlp(hidden=(8,)), identity=identity).build(dataset.spec).eval()
        params = policy(obs)[0].params
        assert torch.equal(params[:, :2], params[:, 2:4]) is not identity


def test_number_of_networks_follows_sharing(dataset: Dataset) -> None:
    counts = {sharing: len(Team(sharing=sharing).groups(dataset.spec)) for sharing in ("type", "none")}
    assert counts == {"type": 2, "none": 3}


def test_agents_of_different_spaces_cannot_share(dataset: Dataset) -> None:
    with pytest.raises(SpecMismatchError, match="near_0 and far_0 have different observations or actions"):
        require_fit(Team(sharing="all"), DistillConfig(), dataset.spec)


def test_members_of_keras_are_refused_and_no_file_imports_them(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "imported.py").write_text("print('imported')\ndef model(shape, outputs): print('called')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="a keras student cannot be a member of a team"):
        Team(student=Keras("imported:model"))
    save_policy(Team().build(dataset.spec), tmp_path / "team", {})
    document = read_json(tmp_path / "team" / "policy.json")
    member = {"type": "keras", "model": "imported:model"}
    for changed in ({"student": member}, {"members": [member]}):
        write_json(tmp_path / "team" / "policy.json", {**document, "config": {**document["config"], **changed}})
        with pytest.raises(CorruptArtifactError, match="expected one of linear"):
            load_native(tmp_path / "team")
    assert not capsys.readouterr().out


def test_team_overwrites_another_and_its_members(dataset: Dataset, tmp_path: Path) -> None:
    for size, mode in ((4, "new"), (8, "overwrite"), (8, "resume")):
        student, config = Team(student=Mlp(hidden=(size,))), DistillConfig(epochs=4, batch_size=64, learning_rate=1e-2)
        policy = distill(dataset, student, config, tmp_path / "team", mode=mode, progress=False)  # type: ignore[arg-type]
        assert isinstance(policy, TeamPolicy)
        assert [policy.member(name).config for name in policy.groups] == [Mlp(hidden=(size,))] * 2


@pytest.mark.parametrize("names", [("type", "keys"), ("a.b_0", "a_b_0")])
def test_any_name_of_an_agent_is_possible(names: tuple[str, str], tmp_path: Path) -> None:
    agents = tuple(AgentSpec(name, agent_type(name), 1) for name in names)
    parts = tuple((name, ObsPart((2,), "float32")) for name in names)
    spec = dataclasses.replace(PolicySpec.from_parts(parts, MultiCategoricalHead((2, 2))), agents=agents)
    policy = Team(student=Linear()).build(spec).eval()
    assert isinstance(policy, TeamPolicy)
    assert len(policy.members) == 2
    save_policy(policy, tmp_path, {})
    obs = torch.rand(3, 4)
    assert torch.equal(load_native(tmp_path)(obs)[0].params, policy(obs)[0].params)


def test_team_needs_several_agents() -> None:
    with pytest.raises(SpecMismatchError, match="the environment has one agent"):
        Team().build(spec_from_env(EnvConfig("CartPole-v1")))


def test_rows_of_agents_are_the_marginals_of_joint_rows(dataset: Dataset) -> None:
    views = agent_views(dataset.spec)[:2]
    rows = agent_dataset(dataset, views)
    count = len(dataset)
    assert len(rows) == 2 * count
    assert rows.columns["agent"].tolist() == [0] * count + [1] * count
    assert np.array_equal(
        rows.columns["teacher"], np.concatenate([dataset.columns["teacher"][:, a : a + 2] for a in (0, 2)])
    )
    assert np.array_equal(rows.columns["action"], dataset.columns["action"][:, :2].T.ravel())
    assert rows.num_episodes == 2 * dataset.num_episodes
    joint = dataset.observations(np.arange(count))
    assert torch.equal(rows.observations(np.arange(count, 2 * count)), joint[:, 5:7])


def test_rows_after_an_agent_has_left_are_left_out(leaving: Dataset) -> None:
    counts = {view.agent.name: len(agent_dataset(leaving, [view])) for view in agent_views(leaving.spec)}
    table = agent_table(leaving)
    alive = {name: int(table["alive"][table["agent"] == name].sum()) for name in counts}
    assert counts == alive
    assert counts["near_0"] == len(leaving)
    steps = leaving.columns["step"]
    assert counts["near_1"] == int((steps < 4).sum())


def test_table_of_agents_with_actions_of_different_lengths(leaving: Dataset) -> None:
    agents = (AgentSpec("near_0", "near", 2), AgentSpec("far_0", "far", 1, team=False))
    spec = dataclasses.replace(leaving.spec, agents=agents)
    table = agent_table(dataclasses.replace(leaving, spec=spec))
    count = len(leaving)
    assert [column.shape for column in table.values()] == [(2 * count,)] * len(table)
    assert table["action"][0].tolist() == leaving.columns["action"][0, :2].tolist()
    assert table["action"][count] == leaving.columns["action"][0, 2]
    assert table["team"].tolist() == [True] * count + [False] * count


@pytest.mark.slow
def test_team_with_agents_that_leave_learns(leaving: Dataset, tmp_path: Path) -> None:
    config = DistillConfig(epochs=10, batch_size=64, learning_rate=1e-2)
    policy = distill(leaving, Team(student=Mlp(hidden=(16,))), config, tmp_path / "team", progress=False)
    assert agreement(policy, leaving) > 0.9
    assert len(play(LEAVING, policy, 3).returns) == 3


def test_gaussian_members_keep_means_and_deviations_in_order() -> None:
    head = GaussianHead(low=(-1.0,) * 3, high=(1.0,) * 3)
    ones = [PolicyOutput(GaussianHead(low=(-1.0,), high=(1.0,)), torch.tensor([[float(n), n + 0.5]])) for n in range(3)]
    assert joint_params(ones, head).tolist() == [[0.0, 1.0, 2.0, 0.5, 1.5, 2.5]]


def test_joint_policy_of_single_policies_equals_the_team(dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    team = Team(student=Mlp(hidden=(8,))).build(dataset.spec).eval()
    assert isinstance(team, TeamPolicy)
    for name in ("near", "far"):
        save_policy(team.member(name), tmp_path / name, {})
    config = TeamTeacher({"near": SavedTeacher(str(tmp_path / "near")), "far_0": SavedTeacher(str(tmp_path / "far"))})
    teacher = config.load(dataset.spec)
    obs = dataset.observations(np.arange(10))
    assert isinstance(teacher, JointPolicy)
    assert torch.allclose(teacher(obs)[0].params, team(obs)[0].params, atol=1e-6)
    assert measure_cost(teacher).parameters == measure_cost(team).parameters  # of shared networks once


@pytest.mark.parametrize(
    ("names", "message"), [(("near",), "far_0 has no policy"), (("near", "fra"), "Did you mean 'far'")]
)
def test_teachers_of_missing_and_unknown_agents_are_refused(
    names: tuple[str, ...], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    team = Team().build(dataset.spec)
    assert isinstance(team, TeamPolicy)
    save_policy(team.member("near"), tmp_path / "near", {})
    config = TeamTeacher(dict.fromkeys(names, SavedTeacher(str(tmp_path / "near"))))
    with pytest.raises(ConfigError, match=message):
        config.load(dataset.spec)


def test_mixed_team_takes_each_part_from_its_policy(dataset: Dataset) -> None:
    teacher, random = Planner(ENV), RandomTeam(dataset.spec, torch.Generator().manual_seed(0))
    obs = dataset.observations(np.arange(200))
    mixed = MixedTeam(teacher, random, ("near_1",))(obs)[0].mode()
    right = teacher(obs)[0].mode()
    assert torch.equal(mixed[:, [0, 2]], right[:, [0, 2]])
    assert 0.3 < float((mixed[:, 1] == right[:, 1]).float().mean()) < 0.7


def test_random_agent_without_bounds_acts_as_gymnasium_samples(dataset: Dataset) -> None:
    head = DeterministicHead(low=(-1.0, -math.inf, 0.0), high=(1.0, math.inf, math.inf))
    random = RandomTeam(dataclasses.replace(dataset.spec, head=head), torch.Generator().manual_seed(0))
    actions = random(dataset.observations(np.arange(500)))[0].mode()
    assert float(actions.abs().max()) < 10
    assert float(actions[:, 0].abs().max()) <= 1
    assert 0.8 < float(actions[:, 1].std()) < 1.2
    assert float(actions[:, 2].min()) >= 0


def test_mixed_teams_of_many_agents_are_few_and_any_agent_is_replaced(dataset: Dataset) -> None:
    agents = tuple(AgentSpec(f"agent_{number}", "agent", 1) for number in range(40))
    spec, policy = dataclasses.replace(dataset.spec, agents=agents), Planner(ENV)
    teams = [team for _, part in _teams([policy], policy, ObservationViews(spec, spec), seed=0) for team in part]
    assert len(teams) <= 40 * (MAX_SUBSETS + 1)
    counts = Counter(name for team in teams if isinstance(team, MixedTeam) for name in team.replaced)
    assert min(counts[agent.name] for agent in agents) > 0.7 * max(counts[agent.name] for agent in agents)


class Opposite(Planner):
    """Policy that prefers the actions that the planner avoids."""

    def __call__(self, obs: torch.Tensor, state: None = None) -> tuple[PolicyOutput, None]:
        output, _ = super().__call__(obs)
        mask = split_parts(obs, self.spec)["action_mask"]
        return PolicyOutput(self.spec.head, -output.params).masked(mask), None


def test_scores_of_mixed_teams_are_those_of_the_same_episodes() -> None:
    entries = {
        "teacher": PolicyRuns("teacher", {None: Planner(ENV)}),
        "s": PolicyRuns("student", {0: Planner(ENV)}),
        "random": PolicyRuns("random", {None: None}),
    }
    # Another teacher's first episodes score 10, as those of the planner, and the rest, which no team plays, score 5.
    best = np.array([[10.0] * 3 + [5.0] * 5])
    returns = {"teacher": best, "s": best, "random": np.array([[0.0] * 3 + [4.0] * 5])}
    reports: list[tuple[int, int]] = []
    result = mixed_teams(ENV, entries, returns, 3, PlayConfig(), Reports(lambda *report: reports.append(report)))
    assert result is not None
    assert reports == sorted(reports)
    assert {total for _, total in reports} == {reports[-1][0]}
    assert len({done for done, _ in reports}) > 3  # of more than one team of three episodes
    assert result.compositions["1 of 3 agents replaced"]["s"].normalized == pytest.approx(1.0)
    assert result.compositions["1 of 3 agents replaced"]["s"].lost == pytest.approx(0.0)


def test_agents_that_have_left_do_not_count_as_agreeing() -> None:
    entries = {
        "teacher": PolicyRuns("teacher", {None: Planner(LEAVING)}),
        "s": PolicyRuns("student", {0: Opposite(LEAVING)}),
    }
    entries["random"] = PolicyRuns("random", {None: None})
    result = mixed_teams(LEAVING, entries, dict.fromkeys(entries, np.zeros((1, 3))), 3, PlayConfig(), SILENT)
    assert result is not None
    assert result.agreement["s"] == {"near_0": 0.0, "near_1": 0.0, "far_0": 0.0}


def all_teams(env: EnvConfig, student: Policy) -> Teams:
    entries = {
        "teacher": PolicyRuns("teacher", {None: Planner(env.view_of("teacher"))}),
        "s": PolicyRuns("student", {0: student}),
        "random": PolicyRuns("random", {None: None}),
    }
    result = mixed_teams(env, entries, dict.fromkeys(entries, np.zeros((1, 8))), 8, PlayConfig(), SILENT)
    assert result is not None
    return result


def test_mixed_teams_do_not_depend_on_entries_that_students_do_not_observe(dataset: Dataset) -> None:
    torch.manual_seed(0)
    student = Team(student=Mlp(hidden=(8,))).build(dataset.spec).eval()
    views = Views(student=(Wrapper("FilterObservation", {"filter_keys": ["near_0", "near_1", "far_0"]}),))
    assert all_teams(EnvConfig(ID, {"state": True}, views=views), student) == all_teams(ENV, student)


CUES = {
    "near": [{"name": "PadObservation", "kwargs": {"segments": [[1, 0, 1]]}}],
    "far": [{"name": "PadObservation", "kwargs": {"segments": [[0, 0, 2], [1, 0, 0]]}}],
}


@pytest.mark.slow
def test_students_with_views_of_their_own_learn_from_a_teacher_that_sees_more(tmp_path: Path) -> None:
    env = EnvConfig(ID, {"state": True}, views=Views(student=(Wrapper("AgentViews", CUES),)))
    teacher = Planner(env.view_of("teacher"))
    data = collect(env, teacher, CollectConfig(steps=1_000, epsilon=0.1), tmp_path / "dataset", progress=False)
    assert {key: part.shape for key, part in data.spec.parts} == {
        "near_0": (1,),
        "near_1": (1,),
        "far_0": (1,),
        "state": (3,),
    }
    config = DistillConfig(epochs=10, batch_size=64, learning_rate=1e-2)
    policy = distill(data, Team(student=Linear()), config, tmp_path / "team", progress=False)
    teams = all_teams(env, policy)
    assert min(teams.agreement["s"].values()) > 0.93
    assert teams.compositions["all far agents replaced"]["s"].mean.value > 9
    mixture = CollectConfig(steps=200, mixture="agent", beta=0.5)
    assert len(collect(env, teacher, mixture, tmp_path / "mixed", student=policy, progress=False)) >= 200


@pytest.mark.slow
def test_evaluation_has_returns_of_agents_and_mixed_teams(dataset: Dataset, tmp_path: Path) -> None:
    students = [
        distill(
            dataset, Team(student=Tree(max_depth=3)), DistillConfig(), tmp_path / f"{seed}", seed=seed, progress=False
        )
        for seed in range(2)
    ]
    policies = {"teacher": Planner(ENV), "tree": students}
    settings = EvaluateConfig(episodes=20, videos=False, teams=10)
    result = evaluate(ENV, policies, settings, tmp_path / "evaluation", progress=False)
    assert result.teams is not None
    assert set(result.teams.compositions) == {
        "1 of 3 agents replaced",
        "2 of 3 agents replaced",
        "all near agents replaced",
        "all far agents replaced",
        "students of two seeds by turns",
        "near_0 at random",
        "near_1 at random",
        "far_0 at random",
    }
    random_agent = result.teams.compositions["near_0 at random"]
    assert random_agent["teacher"].lost == pytest.approx(
        10 / 3 / 2, abs=0.5
    )  # a third of 10, half of it right by chance
    assert result.teams.agreement["tree"].keys() == {"near_0", "near_1", "far_0"}
    assert result.policies["teacher"].metrics["return_near_0"] is not None
    assert isinstance(dataset.spec.head, MultiCategoricalHead)
    for part in ("config.yaml", "provenance.json"):
        (tmp_path / "evaluation" / part).write_text("{}", encoding="utf-8")
    page = write_report(tmp_path / "evaluation").read_text(encoding="utf-8")
    assert "students of two seeds by turns" in page
    assert "Agreement of each agent" in page
