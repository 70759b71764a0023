"""Choice of a teacher: list the shipped ones, verify one, compare several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.compare_teachers import TeacherComparison, compare_teachers
from rldistill.evaluation.config import CompareConfig
from rldistill.evaluation.verify import Verification, VerifyConfig, fit_to_env, verify
from rldistill.io.atomic import write_json
from rldistill.io.progress import track
from rldistill.reporting.page import write_comparison
from rldistill.teachers.load import SavedTeacher, other_training_env
from rldistill.teachers.zoo import zoo_documents


def list_teachers() -> list[dict[str, Any]]:
    """Return the shipped teachers: name, algorithm, observation, actions, mean return and environment steps."""
    rows, evaluations = [], zoo_documents("evaluation.json")
    for name, document in zoo_documents().items():
        about, spec = document["provenance"], document["spec"]
        rows.append(
            {
                "name": f"zoo:{name}",
                "algorithm": about.get("algorithm"),
                "observation": "x".join(map(str, spec["obs_shape"])),
                "actions": spec["head"]["kind"],
                "mean_return": evaluations[name]["policies"]["teacher"]["mean"]["value"],
                "env_steps": about.get("env_steps"),
            }
        )
    return rows


def load_fitting(teacher: SavedTeacher, env: EnvConfig) -> Policy:
    """Load a teacher for an environment.

    Raises:
        SpecMismatchError: the teacher does not fit; the message names the environment of its training, if known.
    """
    policy = teacher.load(spec_from_env(env.view_of("teacher")))
    try:
        fit_to_env(policy, env, teacher.path)
    except SpecMismatchError as error:
        hint = other_training_env(teacher.path, env.id)
        raise SpecMismatchError(f"{error}; {hint}" if hint else str(error)) from None
    return policy


def verify_teacher(teacher: SavedTeacher, env: EnvConfig, config: VerifyConfig, seed: int, quiet: bool) -> Verification:
    """Load a teacher and verify it; see `rldistill.evaluation.verify.verify`."""
    policy = teacher.load(spec_from_env(env.view_of("teacher")))
    with track("verify", "episodes", quiet) as progress:
        result = verify(env, policy, config, seed=seed, name=teacher.path, progress=progress)
    if (problem := other_training_env(teacher.path, env.id)) is not None:
        result = result.model_copy(update={"suspicious": [*result.suspicious, problem]})
    return result


def compare(
    teachers: Mapping[str, SavedTeacher], env: EnvConfig, config: CompareConfig, seed: int, quiet: bool
) -> TeacherComparison:
    """Load teachers and compare them; see `rldistill.evaluation.compare_teachers.compare_teachers`."""
    loaded = {name: load_fitting(teacher, env) for name, teacher in teachers.items()}
    with track("compare", "parts", quiet) as progress:
        return compare_teachers(env, loaded, config, seed=seed, progress=progress)


def save_comparison(comparison: TeacherComparison, out: Path | None, page: Path | None) -> None:
    """Write a comparison as JSON, as a page, or both."""
    if out is not None:
        write_json(out, comparison.to_dict())
    if page is not None:
        write_comparison(comparison, page)
