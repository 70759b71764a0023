"""Section of the report on condensed data: the states from which the students learned."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rldistill.core.entries import flat_values, value_names
from rldistill.data.condense import state_weights
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import FILE, Condensed, Manifest
from rldistill.evaluation.disagreements import as_picture, shown_obs
from rldistill.evaluation.tables import Rows, TableCell, figure
from rldistill.reporting.sections import action_text

MAX_STATES = 24
MAX_COLUMNS = 12
"""Largest number of values of a state in the table."""


@dataclass(frozen=True)
class CondensedStates:
    """First states of condensed data: a row of a table for each, or a picture with its caption."""

    choice: Condensed
    rows: Rows = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)


def condensed_states(run: Path) -> CondensedStates | None:
    """Return the first states of the condensed dataset of a run, in the order of their choice; None without one."""
    folder = run / "dataset"
    if not (folder / FILE).exists():
        return None
    rounds = Manifest.read(folder).rounds
    number, choice = next(((n, round.condensed) for n, round in rounds.items() if round.condensed), (0, None))
    if choice is None:
        return None
    data = Dataset.read([folder], verify=False, only_round=number)
    kept = np.flatnonzero(~data.heldout)[:MAX_STATES]
    states, batch, names = CondensedStates(choice), data.batch(kept), value_names(data.spec)[:MAX_COLUMNS]
    actions, weights = batch.teacher.mode().tolist(), state_weights(data.spec.head, batch.teacher.params).tolist()
    for rank, (obs, action, weight) in enumerate(zip(data.observations(kept), actions, weights, strict=True), 1):
        picture = as_picture(shown_obs(obs.numpy(), data.spec))
        if picture is not None:
            import imageio.v2 as imageio

            png = base64.b64encode(imageio.imwrite("<bytes>", picture, format="PNG")).decode()
            caption = f"{rank}: action {action_text(action)}, gap {weight:.3g}"
            states.pictures.append((f"data:image/png;base64,{png}", caption))
            continue
        values = flat_values(obs[None], data.spec).float().ravel().tolist()
        cells = [TableCell("state", str(rank)), TableCell("action", action_text(action))]
        figures = zip(["gap", *names], [weight, *values], strict=False)
        states.rows.append([*cells, *(figure(name, value, ".3g") for name, value in figures)])
    return states
