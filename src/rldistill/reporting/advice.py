"""Next step after an evaluation."""

import shlex
from pathlib import Path

from rldistill.evaluation.results import Evaluation


def next_step(evaluation: Evaluation, run: Path) -> tuple[str, str] | None:
    """Return the next step for the best student, and its command; None if it keeps the lead or there is no lead.

    An undecided test continues as a group-sequential one, so that another analysis adds no risk of a false yes.
    """
    best = evaluation.best_student
    test = None if best is None else best[1].non_inferiority
    if test is None or test.decision == "yes":
        return None
    if test.decision == "undecided" and test.episodes_needed:
        noun = "episode" if test.episodes_needed == 1 else "episodes"
        file, total = shlex.quote(str(run / "config.yaml")), evaluation.episodes + test.episodes_needed
        return (
            f"To decide it takes about {test.episodes_needed:,} more {noun} of each policy",
            f"rldistill evaluate {file} --sequential --resume evaluate.max_episodes={total}",
        )
    return "To see why it falls short", f"rldistill why {shlex.quote(str(run))}"
