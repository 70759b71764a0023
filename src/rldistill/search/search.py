"""Search for the smallest student: many candidates on a shared dataset, and a test of the smallest good ones."""

import dataclasses
import time
from collections.abc import Callable, Sequence

from rldistill.core.errors import ConfigError, NothingLearnedError
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.distillation.weighting import best_member
from rldistill.envs.spaces import adapt_env
from rldistill.evaluation.episodes import VALIDATION
from rldistill.evaluation.evaluate import load_baseline
from rldistill.evaluation.results import reference_noun
from rldistill.io.atomic import Mode, write_json
from rldistill.io.progress import Round, track
from rldistill.io.stage_inputs import StageInputs
from rldistill.policies.ensemble import Committee
from rldistill.recipes import to_document
from rldistill.recipes.dagger import Dagger
from rldistill.recipes.job import Run, StudentJob
from rldistill.reporting.search_page import SearchResult, Trial
from rldistill.reporting.sections import pareto_front
from rldistill.search.candidates import Candidate, make_candidates, policy_sizes
from rldistill.search.config import SearchConfig
from rldistill.search.halving import SearchStage, assess_finalist, select_finalists
from rldistill.students import AnyStudent, Cnn, Mlp, MultiInput
from rldistill.students.student import capability
from rldistill.teachers.fingerprint import fingerprint

BEHAVIOR_POLICY = "behavior-policy"


def search(
    run: Run,
    config: SearchConfig,
    teacher: Policy,
    collect: Callable[[], Dataset],
    mode: Mode = "new",
    quiet: bool = False,
) -> SearchResult:
    """Find the smallest student that keeps the teacher's lead over random play, in `search/` of the run's folder.

    All candidates learn from one dataset: that of the teacher, and rounds in which a student of medium size acts.
    Successive halving drops the candidates that are too weak or too large. The finalists are tested from the smallest
    on, with several training seeds and on fresh episodes; all tests together have a risk of 5% of a false yes.
    `collect` returns the dataset of the teacher, and collects it first if it is missing.

    Raises:
        ConfigError: the teacher has no lead, or the search in the folder has other inputs.
    """
    folder, started = run.out / "search", time.monotonic()
    inputs = _inputs(run, config, teacher)
    if mode != "overwrite":
        inputs.require_same(folder)
    if mode == "resume" and (folder / "search.json").exists():
        return SearchResult.read(folder / "search.json")
    baseline = None if run.evaluate.baseline is None else load_baseline(run.evaluate.baseline, run.env)
    dataset = collect()  # before the folder is opened, so that refused settings of the collection change nothing
    inputs.open_folder(folder, "search.json", mode)
    dataset = _shared_dataset(run, config, teacher, dataset, quiet)
    best = teacher.members[best_member(dataset)] if isinstance(teacher, Committee) else teacher
    stage = SearchStage(run, config, adapt_env(run.env, teacher), best, dataset, baseline)
    _require_lead(stage)
    sizes, students = policy_sizes(stage.teacher), run.students
    if not config.own:
        spec = dataclasses.replace(dataset.spec, head=dataset.spec.head.neutral, members=())
        students = make_candidates(spec, students, sizes["parameters"])
    candidates = [Candidate(name, student) for name, student in students.items()]
    with track("search", "students", quiet) as progress:
        finalists = select_finalists(stage, candidates, sizes[config.by], progress)
    winner = _find_winner(stage, finalists, quiet)
    points = {entry.name: (entry.size_by(config.by), entry.score) for entry in candidates}
    tried = [Trial(**vars(candidate) | {"student": to_document(candidate.student)}) for candidate in candidates]
    result = SearchResult(
        env=run.env.id,
        margin=config.margin,
        by=config.by,
        baseline=run.evaluate.baseline,
        env_steps=dataset.num_steps,
        teacher=sizes,
        winner=winner,
        tried=tried,
        front=pareto_front(points),
        seconds=round(time.monotonic() - started, 1),
    )
    write_json(folder / "search.json", result.to_dict())
    return result


def _require_lead(stage: SearchStage) -> None:
    best, worst = (stage.reference(name, stage.config.episodes, VALIDATION).mean() for name in ("teacher", "baseline"))
    if not best > worst:
        against = reference_noun(stage.run.evaluate.baseline)
        raise ConfigError(
            f"search: the teacher's mean return ({best:.4g}) is not higher than that of {against} ({worst:.4g}), so "
            "there is no lead to keep. Use another teacher."
        )


def _find_winner(stage: SearchStage, finalists: Sequence[Candidate], quiet: bool) -> str | None:
    """Test the finalists from the smallest on, and return the name of the first that keeps the teacher's lead."""
    with track("test the smallest", "episodes", quiet) as progress:
        for number, candidate in enumerate(finalists):
            part = Round(progress, number, len(finalists))
            candidate.test = assess_finalist(stage, candidate, len(finalists), part)
            if candidate.test.decision == "yes":
                return candidate.name
    return None


def _inputs(run: Run, config: SearchConfig, teacher: Policy) -> StageInputs:
    values = {
        "search": config,
        "seeds": config.training_seeds(run.seeds),
        **{key: getattr(run, key) for key in ("env", "collect", "recipe", "distill", "students", "evaluate", "seed")},
        "teacher": fingerprint(teacher),
    }
    return StageInputs("search", values)


def _shared_dataset(run: Run, config: SearchConfig, teacher: Policy, dataset: Dataset, quiet: bool) -> Dataset:
    """Return the steps of the teacher together with those of a student that acts in rounds of DAgger."""
    recipe = run.recipe
    if not isinstance(recipe, Dagger):
        steps = max(1, run.collect.steps // (2 * config.rounds))
        recipe = Dagger(rounds=config.rounds, steps_per_round=steps)
    student: AnyStudent = Mlp((32, 32))
    if config.behavior_policy is not None:
        student = run.students[config.behavior_policy]
    elif config.own:
        networks = [own for own in run.students.values() if capability(own, "fit") != "tree"]
        student = [*networks, *run.students.values()][0]
    elif len(dataset.spec.obs_shape) == 3:
        student = Cnn((16, 32, 32), (8, 4, 3), (4, 2, 1), (24,))
    elif dataset.spec.has_pictures:
        student = MultiInput()
    recipe = dataclasses.replace(recipe, eval_episodes=None)  # only the steps are used, not the best student
    acting_run = dataclasses.replace(run, students={BEHAVIOR_POLICY: student}, out=run.out / "search")
    job = StudentJob(acting_run, teacher, dataset, BEHAVIOR_POLICY, seed=0, source=run.dataset_folder)
    with track("behavior policy", "epochs", quiet) as progress:
        try:
            recipe.distill(job, "resume", progress)
        except NothingLearnedError as error:
            raise NothingLearnedError(
                f"behavior_policy: {error} This student acts in the rounds of DAgger. Name another student of the run."
            ) from None
    folders = [run.dataset_folder, job.folder / "dataset"]
    return Dataset.read(folders, run.collect.gamma, memory_gb=run.collect.memory_gb)
