"""Reasons why a student fell short of its teacher, from the files of its run, and a command against the first one."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.core.policy import PolicyOutput
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import dataset_folder
from rldistill.distillation.config import DistillConfig
from rldistill.evaluation.results import Evaluation, StateMetrics, next_step
from rldistill.evaluation.tables import Record, percent_text
from rldistill.io.atomic import read_jsonl
from rldistill.io.run_file import NAME, command_arguments, override, read_settings

Cause = Literal["aliasing", "early stop", "too few epochs", "few data", "capacity", "covariate shift", "unknown"]
MAX_STATES = 20_000
"""Largest number of states that are compared with each other."""
MIN_ALIASED_SHARE, MIN_DISAGREEMENT, POOR_DISAGREEMENT = 0.02, 0.02, 0.1
"""Shares of states: with contradictory labels; with another action than the teacher's, for a visible and a poor fit."""
MIN_LOSS_RATIO, MIN_SHIFT_RATIO = 1.3, 1.5
"""Held-out loss by training loss, and disagreement in the student's own states by that in the teacher's."""
THEIRS = "the teacher's"
MIN_LOSS_DECREASE = 0.03
"""Smallest share by which the held-out loss falls in the last quarter of a fit that still improves."""


class Finding(Record):
    """One cause, the facts that show it, and the command against it."""

    cause: Cause
    text: str
    command: str


class Shortfall(Record):
    """Causes of a shortfall, most fundamental first; none if the student keeps the required share of the lead."""

    student: str
    summary: str
    findings: list[Finding]

    def __str__(self) -> str:
        lines = [f"- {found.cause}: {found.text}" for found in self.findings]
        return "\n".join([self.summary, *lines, *[f"Next: {found.command}" for found in self.findings[:1]]])


@dataclass(frozen=True)
class _Facts:
    """Files of one student: settings by dotted keys, rows of the last fit of each training seed, and fidelity."""

    run: Path
    name: str
    settings: Mapping[str, Any]
    fits: Sequence[Sequence[Mapping[str, Any]]]
    teacher_states: StateMetrics | None
    own_states: StateMetrics | None

    def command(self, suffix: str, *settings: str) -> str:
        """Return the command of a run with other settings, in a folder of its own."""
        arguments = [str(self.run / NAME), *settings, override("out", f"{self.run}-{suffix}")]
        return f"rldistill run {shlex.join(arguments)}"

    def number(self, key: str, default: int) -> int:
        """Return an integer of the run file."""
        value = self.settings.get(key, default)
        return value if isinstance(value, int) else default


def explain_shortfall(run: Path | str, student: str | None = None) -> Shortfall:
    """Explain why a student lost more of its teacher's lead than allowed; by default the best student of the run.

    The causes, in this order: equal observations with different labels, so that no student can tell states apart; a fit
    that was stopped, or ended, while it improved; more loss on held-out than on training data; loss that stays high on
    both; and good decisions in the teacher's states with poor ones in the student's own.

    Raises:
        ConfigError: The run has no such student.
        CorruptArtifactError: The run has no evaluation, or its files are broken.
    """
    run = Path(run)
    evaluation = Evaluation.read(run / "evaluation.json")
    best = evaluation.best_student
    if best is None:
        raise ConfigError(f"{run}: no student was evaluated. Run `rldistill evaluate` with a student.")
    name = best[0] if student is None else student
    if name not in evaluation.students:
        raise ConfigError(f"student: {run} has no {name!r}.{did_you_mean(name, evaluation.students)}")
    entry = evaluation.students[name]
    test, close = entry.non_inferiority, entry.fidelity
    share = 1 - (test.margin if test else 0.05)
    reached = "no measurable part" if entry.normalized is None else f"{entry.normalized.value:.1%}"
    summary = f"The student {name} reaches {reached} of its teacher's lead over {evaluation.reference}"
    if test is not None and test.decision == "yes":
        return Shortfall(student=name, summary=f"{summary}, and keeps {percent_text(share)}.", findings=[])
    facts = _Facts(
        run,
        name,
        read_settings(run),
        [rows for seed in sorted((run / "students" / name).glob("seed-*")) if (rows := _fit(seed))],
        close.teacher_states if close else None,
        close.own_states if close else None,
    )
    findings = [*_aliasing(facts), *_epochs(facts), *_fit_quality(facts), *_shift(facts)]
    if not findings:
        text = "none of the usual causes is visible. The report shows its largest disagreements with its teacher."
        step = next_step(evaluation, run) if name == best[0] and test and test.episodes_needed else None
        command = step[1] if step else facts.command("seeds", "seeds=[0,1,2,3,4]")
        findings = [Finding(cause="unknown", text=text, command=command)]
    wanted = f"; wanted: {percent_text(share)}"
    if entry.normalized is not None and entry.normalized.ci95 is not None and entry.normalized.value >= share:
        low, high = entry.normalized.ci95
        wanted = f", but {percent_text(share)} are not shown: the 95% interval is {low:.1%} to {high:.1%}"
    return Shortfall(student=name, summary=f"{summary}{wanted}.", findings=findings)


def _fit(seed: Path) -> list[dict[str, Any]]:
    """Return the epochs of the last fit of a training seed."""
    return [row for row in read_jsonl(seed / "metrics.jsonl") if "epoch" in row]


def _aliasing(facts: _Facts) -> Iterator[Finding]:
    folder = dataset_folder(facts.run)
    if not (folder / "manifest.json").exists():
        return
    share = aliased_share(Dataset.read([folder], verify=False))
    if share >= MIN_ALIASED_SHARE:
        text = (
            f"in {share:.1%} of the teacher's states the student would have to act differently on an observation that "
            "it has elsewhere, too. It needs a memory, or observations that tell these states apart."
        )
        yield Finding(cause="aliasing", text=text, command=facts.command("gru", "students={gru: {type: gru}}"))


def aliased_share(dataset: Dataset) -> float:
    """Return the share of states in which even the best function of the observation acts unlike the teacher.

    Such a function takes, for each set of equal observations, the most frequent action of the teacher.
    """
    rows = dataset.spread(MAX_STATES)
    actions: dict[bytes, Counter[bytes]] = defaultdict(Counter)
    for batch in dataset.batches(rows, 512):
        chosen = PolicyOutput(dataset.spec.head, batch.teacher.params).mode().numpy()
        observations = batch.obs if isinstance(batch.obs, Mapping) else {"": batch.obs}
        parts = [value.contiguous().numpy() for value in observations.values()]
        for number, action in enumerate(np.round(chosen.astype(np.float64), 3)):
            key = hashlib.blake2b(b"".join(np.ascontiguousarray(part[number]).tobytes() for part in parts)).digest()
            actions[key][action.tobytes()] += 1
    return 1 - sum(max(counts.values()) for counts in actions.values()) / len(rows)


def _epochs(facts: _Facts) -> Iterator[Finding]:
    """Yield fits that were stopped in their first half, or whose held-out loss still fell at the last epoch."""
    fits = [rows for rows in facts.fits if len(rows) > 1]
    if not fits:
        return
    wanted, patience = (facts.number(f"distill.{key}", getattr(DistillConfig, key)) for key in ("epochs", "patience"))
    rows = min(fits, key=len)
    losses = [row["heldout_loss"] for row in rows]
    if patience > 0 and len(rows) <= wanted / 2:
        text = f"after {len(rows)} of {wanted} epochs, since the held-out loss did not fall for {patience} epochs."
        yield Finding(cause="early stop", text=text, command=facts.command("patient", "distill.patience=0"))
    elif len(rows) == wanted and (before := min(losses[: -(-3 * len(losses) // 4)])) > 0:
        fallen = 1 - min(losses) / before
        if fallen > MIN_LOSS_DECREASE:
            text = f"the held-out loss still fell by {fallen:.0%} in the last quarter of the {wanted} epochs."
            command = facts.command("longer", f"distill.epochs={2 * wanted}")
            yield Finding(cause="too few epochs", text=text, command=command)


def _fit_quality(facts: _Facts) -> Iterator[Finding]:
    """Yield few data or small capacity, if the student decides poorly in the teacher's own states."""
    lost = _disagreement(facts.teacher_states)
    best = [min(rows, key=lambda row: row["heldout_loss"]) for rows in facts.fits]
    if lost is None or not best or (_is_shift(facts) and lost < POOR_DISAGREEMENT):
        return
    heldout = float(np.mean([row["heldout_loss"] for row in best]))
    trained = [row["train_loss"] for row in best if row.get("train_loss") is not None]
    train = float(np.mean(trained)) if trained else None
    if train is not None and heldout > MIN_LOSS_RATIO * train:
        steps = facts.number("collect.steps", CollectConfig.steps)
        text = f"the loss is {heldout:.3g} on held-out data, but {train:.3g} on the training data ({steps:,} steps)."
        yield Finding(cause="few data", text=text, command=facts.command("more", f"collect.steps={4 * steps}"))
    elif lost > MIN_DISAGREEMENT:
        also = "" if train is None else f" (on the training data, too: {train:.3g})"
        agrees = _decisions(facts.teacher_states, THEIRS)
        text = f"the held-out loss is {heldout:.3g}{also}, and it {agrees}. A larger student may fit better."
        command = f"rldistill search {command_arguments(facts.run)}"
        yield Finding(cause="capacity", text=text, command=command)


def _shift(facts: _Facts) -> Iterator[Finding]:
    if not _is_shift(facts):
        return
    steps = facts.number("collect.steps", CollectConfig.steps)
    command = facts.command("dagger", f"recipe={{name: dagger, rounds: 4, steps_per_round: {max(1, steps // 2)}}}")
    if facts.settings.get("recipe.name", facts.settings.get("recipe")) in ("dagger", "on_policy"):
        command = facts.command("rounds", f"recipe.rounds={2 * facts.number('recipe.rounds', 1)}")
    theirs, own = _decisions(facts.teacher_states, THEIRS), _decisions(facts.own_states, "its own")
    text = f"it {theirs}, but {own}: its mistakes lead to states that the teacher never visits."
    yield Finding(cause="covariate shift", text=text, command=command)


def _is_shift(facts: _Facts) -> bool:
    lost, own = _disagreement(facts.teacher_states), _disagreement(facts.own_states)
    return lost is not None and own is not None and own > MIN_SHIFT_RATIO * lost and own > MIN_DISAGREEMENT


def _disagreement(states: StateMetrics | None) -> float | None:
    """Return the share of states with another action than the teacher's, or the RMSE of continuous actions."""
    if states is None:
        return None
    return states.action_rmse if states.agreement is None else 1 - states.agreement


def _decisions(states: StateMetrics | None, whose: str) -> str:
    assert states is not None
    if states.agreement is None:
        return f"differs from its teacher by {states.action_rmse:.3g} in {whose} states"
    return f"agrees with its teacher in {states.agreement:.1%} of {whose} states"
