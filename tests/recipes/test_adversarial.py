"""The recipe `adversarial`, and imitation of a dataset without a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from rldistill import (
    Adversarial,
    ConfigError,
    DiscriminatorConfig,
    DistillConfig,
    EnvConfig,
    Gru,
    ImitateConfig,
    Mlp,
    PPOConfig,
    Ridge,
    Run,
    SpecMismatchError,
    export_minari,
    imitate,
    import_minari,
)
from rldistill.cli.main import app
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import read_jsonl, sha256_file
from rldistill.io.progress import SILENT
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.adversarial import initial_policy
from rldistill.recipes.job import StudentJob
from rldistill.run.stages import run_collect, run_distill
from rldistill.students import Cnn
from rldistill.students.storage import load_native

from ..conftest import CARTPOLE, Reports

SHORT = PPOConfig(total_steps=512, num_envs=4, rollout_length=32, epochs=1, eval_every=256, eval_episodes=2)
SMALL = DiscriminatorConfig(hidden=(8,), epochs=1, batch_size=64)
FIT = DistillConfig(epochs=2, batch_size=64)


@pytest.fixture(scope="module")
def folder(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the session's dataset of CartPole."""
    return next(tmp_path_factory.getbasetemp().glob("cartpole*/dataset"))


def small_run(out: Path, teacher: NetworkPolicy, recipe: Adversarial, **changes: Any) -> Run:
    settings: dict[str, Any] = {
        "env": CARTPOLE, "teacher": teacher, "out": out, "recipe": recipe, "distill": FIT, "ppo": SHORT,
        "students": {"mlp": Mlp((8,))}, "verify": False,
    }  # fmt: skip
    return Run(**{**settings, **changes})


class Stop(Exception):
    """Interruption of a training."""


def stop_at(steps: int) -> Reports:
    def report(done: int, total: int) -> None:
        if done >= steps:
            raise Stop

    return Reports(report)


@pytest.mark.parametrize("form", ["log_ratio", "gail", "airl"])
def test_interrupted_training_continues_exactly(
    tmp_path: Path, folder: Path, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.io.tensors.CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr("rldistill.io.tensors.MAX_CHECKPOINT_SHARE", float("inf"))
    config = ImitateConfig(Adversarial(form=form, episodes=3, discriminator=SMALL), FIT, SHORT)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    imitate(folder, Mlp((8,)), config, whole, progress=False)
    for steps in (128, 384):
        with pytest.raises(Stop):
            imitate(folder, Mlp((8,)), config, stopped, mode="resume", progress=stop_at(steps))
    imitate(folder, Mlp((8,)), config, stopped, mode="resume", progress=False)
    assert sha256_file(whole / "policy.safetensors") == sha256_file(stopped / "policy.safetensors")
    rows = [[{**row, "seconds": 0} for row in read_jsonl(path / "metrics.jsonl")] for path in (whole, stopped)]
    assert rows[0] == rows[1]
    assert {"imitation_reward", "discriminator_loss", "recorded_accuracy", "own_accuracy"} <= rows[0][-1].keys()
    with pytest.raises(ConfigError, match="mode"):
        imitate(folder, Mlp((8,)), config, whole, progress=False)
    other = replace(config, ppo=replace(SHORT, learning_rate=1e-3))
    with pytest.raises(ConfigError, match=r"learning_rate was 0.0003, now it is 0.001"):
        imitate(folder, Mlp((8,)), other, whole, mode="resume", progress=False)


def test_reward_of_the_environment_is_not_used(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student without evaluations is the same in an environment whose rewards are others."""
    monkeypatch.setattr("rldistill.recipes.adversarial._validation_returns", lambda *_: np.zeros(1))
    config = ImitateConfig(Adversarial(discriminator=SMALL, pretrain=False), FIT, SHORT)
    hashes = []
    for sparse in (False, True):
        env = EnvConfig("CartPole-v1", {"sutton_barto_reward": sparse})
        out = tmp_path / str(sparse)
        imitate(folder, Mlp((8,)), replace(config, env=env), out, progress=False)
        hashes.append(sha256_file(out / "policy.safetensors"))
    assert hashes[0] == hashes[1]


def test_run_with_the_teacher_alone_needs_no_dataset(tmp_path: Path, teacher: NetworkPolicy) -> None:
    recipe = Adversarial(discriminator_weight=0.0, teacher_weight=1.0, pretrain=False)
    run = small_run(tmp_path, teacher, recipe)
    assert not recipe.needs_dataset
    student = recipe.distill(StudentJob(run, teacher, None, "mlp", 0), "new", SILENT)
    assert student.spec.head.kind == "categorical"
    rows = read_jsonl(tmp_path / "students/mlp/seed-0/metrics.jsonl")
    assert "discriminator_loss" not in rows[-1]
    assert "teacher_kl" in rows[-1]


def test_run_with_states_and_the_teacher(tmp_path: Path, teacher: NetworkPolicy, dataset: Dataset) -> None:
    recipe = Adversarial(teacher_weight=0.5, discriminator=replace(SMALL, inputs="state"), episodes=3)
    job = StudentJob(small_run(tmp_path, teacher, recipe), teacher, dataset, "mlp", 0)
    recipe.distill(job, "new", SILENT)
    rows = read_jsonl(job.folder / "metrics.jsonl")
    assert rows[0]["score"] is not None  # of the distilled student
    assert {"discriminator_loss", "teacher_kl"} <= rows[-1].keys()


def test_recorded_steps_of_another_folder(tmp_path: Path, teacher: NetworkPolicy, folder: Path) -> None:
    recipe = Adversarial(dataset=str(folder), discriminator=SMALL)
    run = small_run(tmp_path, teacher, recipe)
    assert not recipe.needs_dataset
    recipe.check(run, teacher)
    job = StudentJob(run, teacher, None, "mlp", 0)
    assert job.inputs().values["recipe.dataset"] == Manifest.read(folder).digest
    assert recipe.distill(job, "new", SILENT).spec.head.kind == "categorical"


class TestFirstEpisodes:
    def test_are_whole_and_hold_nothing_else(self, dataset: Dataset) -> None:
        part = dataset.first_episodes(3)
        assert part.num_episodes == 3
        assert len(part) == part.num_steps
        assert int((part.columns["terminated"] | part.columns["truncated"]).sum()) == 3
        rows = np.flatnonzero(
            np.isin(
                dataset.columns["episode"],
                np.unique(dataset.columns["episode"][dataset.columns["terminated"] | dataset.columns["truncated"]])[:3],
            )
        )
        everything = np.arange(len(part))
        torch.testing.assert_close(part.observations(everything), dataset.observations(rows))
        torch.testing.assert_close(part.next_observations(everything), dataset.next_observations(rows))
        for name in ("action", "reward", "teacher"):
            assert np.array_equal(part.columns[name], dataset.columns[name][rows])
        assert np.array_equal(np.union1d(part.row, part.next_row), np.arange(len(part.obs)))
        assert 0 < part.heldout.sum() < len(part)

    def test_too_few_are_refused(self, dataset: Dataset) -> None:
        with pytest.raises(ConfigError, match=r"dataset: it has \d+ whole episodes, expected 100000"):
            dataset.first_episodes(100_000)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ({}, {"ppo": replace(SHORT, gamma=1.0)}, "ppo.gamma: .*absorbing"),
        ({"form": "airl"}, {"students": {"gru": Gru(4)}}, "recipe.form: airl"),
        ({}, {"students": {"ridge": Ridge()}}, "does not learn by gradient"),
        ({}, {"students": {"cnn": Cnn()}}, "cnn"),
        ({}, {"distill": DistillConfig(losses=["wasserstein"])}, "Wasserstein"),
        ({}, {"distill": DistillConfig(weighting="value")}, "distill.weighting: value needs several teachers"),
    ],
)
def test_impossible_settings_are_refused_before_the_first_step(
    tmp_path: Path, teacher: NetworkPolicy, recipe: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    run = small_run(tmp_path / "run", teacher, Adversarial(**recipe), **changes)
    with pytest.raises((ConfigError, SpecMismatchError), match=message):
        run_collect(run, quiet=True)
    assert not (tmp_path / "run" / "dataset").exists()


def test_dataset_of_another_environment_is_refused(tmp_path: Path, folder: Path) -> None:
    config = ImitateConfig(env=EnvConfig("Acrobot-v1"))
    with pytest.raises(SpecMismatchError, match="observation shape"):
        imitate(folder, Mlp((8,)), config, tmp_path / "student", progress=False)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("place", ["nowhere", "another environment"])
def test_impossible_folders_are_refused_before_the_first_step(
    tmp_path: Path, teacher: NetworkPolicy, folder: Path, place: str
) -> None:
    named = folder if place == "another environment" else tmp_path / place
    env = EnvConfig("Acrobot-v1") if place == "another environment" else CARTPOLE
    run = small_run(tmp_path / "run", teacher, Adversarial(dataset=str(named)), env=env)
    with pytest.raises((ConfigError, SpecMismatchError), match=r"dataset: .*there is none|observation shape"):
        run_distill(run, quiet=True)
    assert not (tmp_path / "run" / "students").exists()


def test_dataset_alone_has_no_teacher_to_compare_with(tmp_path: Path, folder: Path) -> None:
    recipe = Adversarial(teacher_weight=1.0, discriminator=DiscriminatorConfig(inputs="state"))
    with pytest.raises(ConfigError, match="teacher_weight"):
        imitate(folder, Mlp((8,)), ImitateConfig(recipe), tmp_path / "student", progress=False)


def test_deterministic_teacher_has_no_probabilities(tmp_path: Path) -> None:
    """Probabilities of its actions are needed for the reward, and only for that."""
    env = EnvConfig("Pendulum-v1")
    teacher = Mlp((4,)).build(spec_from_env(env)).eval()
    settings: dict[str, Any] = {"env": env, "ppo": replace(SHORT, eval_episodes=1)}
    alone = Adversarial(discriminator_weight=0.0, teacher_weight=1.0, pretrain=False)
    with pytest.raises(SpecMismatchError, match=r"recipe.teacher_weight: a deterministic teacher"):
        alone.check(small_run(tmp_path, teacher, alone, **settings), teacher)


class TestInitialPolicy:
    @staticmethod
    def recorded(teacher: NetworkPolicy, noise: float) -> Dataset:
        torch.manual_seed(0)
        obs = torch.randn(400, 3)
        action = teacher(obs)[0].mode() + noise * torch.randn(400, 1)
        columns = {"action": action.detach().numpy()}
        rows = np.arange(400)
        return Dataset(teacher.spec, columns, obs.numpy(), rows, rows, rows % 2 == 0, 400)

    @pytest.mark.parametrize(("noise", "expected"), [(0.3, 0.3), (0.0, 0.05), (9.0, 1.0)])
    def test_noise_of_deterministic_actions_is_their_error(self, noise: float, expected: float) -> None:
        distilled = Mlp((4,)).build(spec_from_env(EnvConfig("Pendulum-v1"))).eval()
        policy = initial_policy(Mlp((4,)), self.recorded(distilled, noise), distilled, 0)
        assert policy.spec.head.kind == "gaussian"
        assert policy.log_std is not None
        assert policy.log_std.exp().item() == pytest.approx(expected, rel=0.1)
        obs = torch.randn(5, 3)
        torch.testing.assert_close(policy(obs)[0].mode(), distilled(obs)[0].mode())

    def test_new_weights_are_standardized_by_the_data(self, dataset: Dataset) -> None:
        policy = initial_policy(Mlp((4,)), dataset, None, 0)
        torch.testing.assert_close(policy.obs_mean, torch.from_numpy(dataset.obs).mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_command_trains_a_student_from_a_dataset_alone(tmp_path: Path, folder: Path) -> None:
    def run(out: Path, *settings: str) -> Result:
        student = ["--student", "{type: mlp, hidden: [8]}", "--out", str(out)]
        return CliRunner().invoke(app, ["dataset", "imitate", str(folder), *student, *settings, "--quiet"])

    settings = ["ppo.total_steps=256", "ppo.num_envs=4", "ppo.rollout_length=32", "ppo.eval_episodes=1"]
    out = tmp_path / "student"
    assert run(out, *settings, "distill.epochs=1", "recipe.form=gail").exit_code == 0
    assert load_native(out).spec.head.kind == "categorical"
    assert "settings: found 'seed'" in run(tmp_path / "other", "seed=5").output
    again, wrong = run(out, *settings), run(tmp_path / "other", "recipe.from=gail")
    assert (again.exit_code, wrong.exit_code) == (2, 2)
    assert "recipe.from: unknown key" in " ".join(wrong.output.split())
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_recorded_steps_of_minari(teacher: NetworkPolicy, dataset: Dataset, folder: Path, tmp_path: Path) -> None:
    """Steps that other programs recorded have actions alone, as those without the labels of this export have."""
    pytest.importorskip("minari", reason="needs the extra minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        export_minari(folder, "minari:cartpole/dqn-v0", progress=False)
        import_minari("minari:cartpole/dqn-v0", tmp_path / "dataset", progress=False)
    config = ImitateConfig(Adversarial(discriminator=SMALL), replace(FIT, epochs=5), SHORT)
    assert imitate(tmp_path / "dataset", Mlp((8,)), config, tmp_path / "student", progress=False)
