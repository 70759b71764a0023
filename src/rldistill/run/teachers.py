"""Which teacher? What `rldistill teachers` does: list those that ship, verify one, compare several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import Policy
from rldistill.envs.config import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.compare_teachers import compare_teachers
from rldistill.evaluation.config import CompareConfig
from rldistill.evaluation.verify import Claim, fitted, verify
from rldistill.io.atomic import write_json
from rldistill.io.progress import track
from rldistill.reporting.teachers import comparison_table, write_comparison
from rldistill.teachers.load import SavedTeacher, trained_elsewhere, zoo_documents


def list_teachers() -> list[dict[str, Any]]:
    """The teachers that ship: name, algorithm, what they see and do, mean return, environment steps."""
    rows, evaluations = [], zoo_documents("evaluation.json")
    for name, document in zoo_documents().items():
        about, spec = document["provenance"], document["spec"]
        rows.append(
            {
                "name": f"zoo:{name}",
                "algorithm": about.get("algorithm"),
                "observation": "x".join(map(str, spec["obs_shape"])),
                "actions": spec["head"]["kind"],
                "mean_return": evaluations[name]["policies"]["teacher"]["mean"],
                "env_steps": about.get("env_steps"),
            }
        )
    return rows


def load_fitting(teacher: SavedTeacher, env: EnvConfig) -> Policy:
    """Load a teacher for an environment.

    Raises:
        SpecMismatchError: it does not fit; where its folder names another environment, that too.
    """
    policy = teacher.load(spec_from_env(env.view_of("teacher")))
    try:
        fitted(policy, env, teacher.path)
    except SpecMismatchError as error:
        told = trained_elsewhere(teacher.path, env.id)
        raise SpecMismatchError(f"{error}; {told}" if told else str(error)) from None
    return policy


def verify_teacher(
    teacher: SavedTeacher, env: EnvConfig, claim: Claim | None, episodes: int, seed: int, quiet: bool
) -> dict[str, Any]:
    """Load a teacher and verify it; see `rldistill.evaluation.verify.verify`."""
    policy = teacher.load(spec_from_env(env))
    with track("verify", "episodes", quiet) as report:
        found = verify(policy, env, claim, episodes=episodes, seed=seed, name=teacher.path, progress=report)
    if (other := trained_elsewhere(teacher.path, env.id)) is not None:
        found |= {"suspicious": [*found["suspicious"], other], "ok": False}
    return {"teacher": teacher.path, "env": env.id, **found}


def compare(
    teachers: Mapping[str, SavedTeacher], env: EnvConfig, config: CompareConfig, seed: int, quiet: bool
) -> dict[str, Any]:
    """Load teachers and compare them; see `rldistill.evaluation.compare_teachers.compare_teachers`."""
    with track("compare", "parts", quiet) as report:
        return compare_teachers(
            {name: load_fitting(teacher, env) for name, teacher in teachers.items()},
            env,
            config,
            seed=seed,
            progress=report,
        )


def save_comparison(found: dict[str, Any], out: Path | None, page: Path | None) -> None:
    """Write a comparison as JSON, as a page, or both."""
    if out is not None:
        write_json(out, found)
    if page is not None:
        write_comparison(found, page)


def print_comparison(found: dict[str, Any]) -> None:
    """The comparison as a table, and which teacher to take."""
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 160  # a file has no edge
    console.print(comparison_table(found))
    for pair, share in found["agreement"].items():
        console.print(f"{'agreement' if found['discrete'] else 'difference'} {pair}: {share:.3f}")
    for pair, why in found["no_agreement"].items():
        console.print(f"no agreement {pair}: {why}")
    if found["no_ensemble"] is not None:
        console.print(f"no ensemble of them: {found['no_ensemble']}")
    console.print(f"take {found['take']}: {found['why']}.")


def print_verification(found: dict[str, Any]) -> None:
    """The verdict on one teacher in a few lines."""
    console = Console(highlight=False)
    if found["mean"] is not None:
        low, high = found["ci95"]
        console.print(
            f"{found['teacher']} on {found['env']}: {found['mean']:.1f} ± {found['std']:.1f} over {found['episodes']} "
            f"episodes (95% interval of the mean {low:.1f} to {high:.1f})"
        )
    if (claim := found["claim"]) is not None:
        word = "consistent with" if claim["consistent"] else "NOT consistent with"
        console.print(f"{word} the claimed {claim['mean']:g} ± {claim['std']:g} ({claim['because']})")
    for text in found["suspicious"]:
        console.print(f"suspicious: {text}")
    console.print("verified" if found["ok"] else "not verified")
