"""Adversarial imitation: PPO on the reward of a discriminator of recorded steps and the student's own."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from rldistill.collection.collect import collected_spec
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.fields import Seed, validated_dataclass
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset, open_dataset
from rldistill.data.manifest import FILE, Manifest, dataset_folder
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill, require_fit
from rldistill.distillation.prepare import prepare
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.evaluation.episodes import VALIDATION, PlayConfig, play
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.from_reward import FromReward
from rldistill.recipes.job import Run, StudentJob
from rldistill.rl import ppo
from rldistill.rl.config import AdversarialConfig, PPOConfig
from rldistill.rl.guidance import Guidance
from rldistill.rl.reward import AdversarialReward, require_finite
from rldistill.rl.train_state import LearningTask
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native, trust_student
from rldistill.students.student import capability

NOISE_SAMPLE = 5_000
"""Recorded steps from which the first noise of continuous actions is computed."""
MIN_NOISE = 0.05
"""Smallest first standard deviation of an entry of an action; without noise there is nothing to learn from."""


@validated_dataclass
class Adversarial(AdversarialConfig, FromReward):
    """PPO on the reward of a discriminator of recorded steps and the student's own.

    The reward of the environment only selects the best policy, by validation episodes.

    Attributes:
        episodes: whole recorded episodes to learn from, the first ones; by default all recorded steps.
        dataset: folder of recorded steps in place of those that the run collects, such as imported ones of Minari.
        pretrain: True to distill on the recorded steps first, with the settings of `distill`.
    """

    episodes: Annotated[int, Ge(2)] | None = None
    dataset: str | None = None
    pretrain: bool = True

    @property
    def needs_dataset(self) -> bool:
        return self.dataset is None and (self.discriminator_weight > 0 or self.pretrain)

    def guidance_options(self, run: Run) -> dict[str, Any]:
        return {}

    def inputs(self, student: AnyStudent) -> dict[str, Any]:
        return {} if self.dataset is None else {"recipe.dataset": _manifest(self.dataset).digest}

    def student_head(self, run: Run, student: AnyStudent, spec: PolicySpec, teacher: Policy) -> ActionHead:
        head = self.require_student(student, spec, teacher.spec.head)
        if self.pretrain:
            data = collected_spec(run.env, teacher) if self.dataset is None else _manifest(self.dataset).spec
            require_fit(student, run.distill, data)
        return head

    def require_student(self, student: AnyStudent, spec: PolicySpec, labels: ActionHead) -> ActionHead:
        """Return the head of a student; raise if it cannot learn from this reward.

        Args:
            student: student.
            spec: its observations.
            labels: head of the teacher, or of the recorded labels.

        Raises:
            ConfigError: the student has no probabilities of recorded actions, which `airl` needs.
            SpecMismatchError: teacher and student have no probabilities of the same actions.
        """
        head = ppo.new_policy(student, spec, labels, ()).spec.head
        if self.form == "airl" and (capability(student, "recurrent") or head.kind == "squashed_gaussian"):
            raise ConfigError(
                "recipe.form: airl needs probabilities of recorded actions, which a recurrent student and a "
                "squashed_gaussian head do not have. Use log_ratio."
            )
        if self.teacher_weight and not (labels.action_values or labels.same_space(head)):
            raise SpecMismatchError(
                f"recipe.teacher_weight: a {labels.kind} teacher has no probabilities. Use teacher_weight: 0."
            )
        return head

    def guidance(self, run: Run, teacher: Policy) -> Guidance:
        require_finite(self, run.ppo.gamma)
        if self.dataset is not None:
            env = adapt_env(run.env, teacher)
            _manifest(self.dataset).spec.require_same_input(observation_views(env).student, self.dataset, env.id)
        return super().guidance(run, teacher)

    def learn(self, job: StudentJob, task: LearningTask, mode: Mode, progress: Progress) -> NetworkPolicy:
        data = None
        if self.dataset is not None or self.needs_dataset:
            data = job.data if self.dataset is None else open_dataset(self.dataset)
            data.require_whole("adversarial")
        config = ImitateConfig(self, job.run.distill, job.run.ppo)
        return _learn(task, config, data, job.teacher.spec.head, progress)


@validated_dataclass
class ImitateConfig:
    """Settings of `imitate`, under the keys of a run file.

    Attributes:
        recipe: reward, and choice of recorded steps.
        distill: settings of the distillation that comes first.
        ppo: settings of PPO.
        env: environment; by default that of the dataset.
        seed: training seed.
    """

    recipe: Adversarial = Adversarial()
    distill: DistillConfig = DistillConfig()
    ppo: PPOConfig = PPOConfig()
    env: EnvConfig | None = None
    seed: Seed = 0


def imitate(
    dataset: Path | str,
    student: AnyStudent,
    config: ImitateConfig,
    folder: Path | str,
    *,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> NetworkPolicy:
    """Train a student in the environment of a dataset to act as recorded, without a teacher.

    Args:
        dataset: folder of recorded steps, or of their run.
        student: student.
        config: settings.
        folder: folder of the student.
        mode: "new" refuses a folder that exists, "resume" continues it, "overwrite" discards it.
        progress: True shows progress on stderr; or an object with `update(done, total, score)`.

    Raises:
        ConfigError: the student cannot learn from this reward, or `teacher_weight` is not 0.
        SpecMismatchError: dataset and environment do not fit.
    """
    trust_student(student)
    folder, manifest = Path(folder), _manifest(dataset)
    env, recipe = config.env or manifest.env, config.recipe
    if recipe.teacher_weight or recipe.dataset is not None:
        raise ConfigError("recipe: teacher_weight and dataset are settings of a run with a teacher. Leave them out.")
    require_finite(recipe, config.ppo.gamma)
    spec = observation_views(env).student
    manifest.spec.require_same_input(spec, str(dataset), env.id)
    recipe.require_student(student, spec, manifest.spec.head)
    if recipe.pretrain:
        require_fit(student, config.distill, manifest.spec)
    inputs = StageInputs("dataset imitate", {"student": student, "config": config, "dataset": manifest.digest})
    data = open_dataset(dataset)
    data.require_whole("imitation")
    if inputs.open_folder(folder, "policy.json", mode):
        return load_native(folder)
    score = partial(_validation_returns, env, config.ppo.eval_episodes, config.seed)
    task = LearningTask(env, student, folder, score=score, seed=config.seed)
    with stage_progress(progress, "imitate", "steps") as report:
        return _learn(task, config, data, None, report)


def _learn(
    task: LearningTask, config: ImitateConfig, data: Dataset | None, teacher: ActionHead | None, progress: Progress
) -> NetworkPolicy:
    """Train the student of a task, whose folder is open, on recorded steps or on the labels of a teacher."""
    recipe, initial = config.recipe, None
    if data is not None:
        data = data if recipe.episodes is None else data.first_episodes(recipe.episodes)
        if recipe.pretrain:
            folder = task.folder / "distilled"
            initial = distill(data, task.student, config.distill, folder, seed=task.seed, mode="resume", progress=False)
        initial = initial_policy(task.student, data, initial, task.seed)
        task = dataclasses.replace(task, head=initial.spec.head)
    head = teacher if recipe.teacher_weight else None
    reward = AdversarialReward.new(recipe, config.ppo.gamma, data, head, task.seed)
    task = dataclasses.replace(task, reward=reward)
    return ppo.learn(task, config.ppo, initial=initial, mode="resume", progress=progress)


def initial_policy(student: AnyStudent, data: Dataset, distilled: NetworkPolicy | None, seed: int) -> NetworkPolicy:
    """Return the first policy of PPO: a distilled one, or new weights with observations standardized by the data.

    Deterministic actions become the means of Gaussians, with the root mean square of their errors in the data.
    """
    torch.manual_seed(seed)
    policy = ppo.new_policy(student, data.spec, data.spec.head, ())
    if distilled is None:
        prepare(policy, data)
        return policy
    policy.load_state_dict({**policy.state_dict(), **distilled.state_dict()})
    if policy.log_std is not None and distilled.log_std is None:
        rows = data.spread(NOISE_SAMPLE)
        with torch.no_grad():
            errors = torch.from_numpy(data.columns["action"][rows]) - distilled(data.observations(rows))[0].mode()
            policy.log_std.copy_(errors.square().mean(0).sqrt().clamp(MIN_NOISE, 1).log())
    return policy


def _validation_returns(env: EnvConfig, episodes: int, seed: int, policy: NetworkPolicy) -> NDArray[np.float64]:
    return play(env, policy, episodes, PlayConfig(seed, VALIDATION)).returns


def _manifest(folder: Path | str) -> Manifest:
    path = dataset_folder(Path(folder))
    if not (path / FILE).exists():
        raise ConfigError(f"dataset: {folder}: there is none. Collect one, or import one (`rldistill dataset import`).")
    return Manifest.read(path)
