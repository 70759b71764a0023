"""`MODEL_CARD.md`: a model card as the Hugging Face Hub reads it."""

from __future__ import annotations

import re
import statistics
from typing import Any

import yaml

from rldistill.reporting.sections import robustness_rows
from rldistill.reporting.tables import TableCell, best_student, rows, verdict

SHOWN = ("policy", "mean return", "normalised", "agreement", "parameters", "multiply-adds", "latency", "env steps")


def model_card(evaluation: dict[str, Any], config: str) -> str:
    """The model card of a run: front matter, verdict, results, limits, and how to do it again.

    `config` is the run file's text. Nothing that it or the evaluation says becomes markup.
    """
    parts = [
        f"# Students of a teacher for {escaped(evaluation['env'])}",
        escaped(verdict(evaluation)),
        "## Results",
        f"{evaluation['episodes']} full episodes for each policy and training seed, the same for all; in brackets are "
        "95% intervals. Normalised: 0 is random play, 1 the teacher. Environment steps of students count their "
        "teacher's data.",
        _table([[cell for cell in row if cell.column in SHOWN] for row in rows(evaluation)]),
        *_robustness(evaluation),
        "## Limits",
        "\n".join(f"- {escaped(limit)}" for limit in _limits(evaluation)),
        "## How to reproduce",
        *_again(evaluation, config),
    ]
    front = yaml.safe_dump(_front_matter(evaluation), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&$])", r"\\\1", one_line).replace("://", ":\\//")


def _front_matter(evaluation: dict[str, Any]) -> dict[str, Any]:
    env = evaluation["env"]
    students = {name: entry for name, entry in evaluation["policies"].items() if entry["kind"] == "student"}
    return {
        "library_name": "rldistill",
        "pipeline_tag": "reinforcement-learning",
        "tags": [env, "reinforcement-learning", "deep-reinforcement-learning", "policy-distillation", "rldistill"],
        "model-index": [{"name": name, "results": [_result(env, entry)]} for name, entry in students.items()],
    }


def _result(env: str, entry: dict[str, Any]) -> dict[str, Any]:
    values = [value for run in entry["runs"] for value in run["returns"]]
    spread = statistics.pstdev(values)
    metrics = [
        {"type": "mean_reward", "name": "mean_reward", "value": f"{entry['mean']:.2f} +/- {spread:.2f}"},
        {"type": "normalised_score", "name": "share of the teacher's lead", "value": entry["normalised"]},
        {"type": "parameters", "name": "parameters", "value": entry["parameters"]},
    ]
    return {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"name": env, "type": env},
        "metrics": [{**metric, "verified": False} for metric in metrics if metric["value"] is not None],
    }


def _table(table: list[list[TableCell]]) -> str:
    head = [cell.column for cell in table[0]]
    body = [[cell.text + (f" ({cell.note})" if cell.note else "") for cell in row] for row in table]
    lines = [map(escaped, row) for row in (head, *body)]
    first, *others = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([first, "|" + "|".join([" --- ", *[" ---: "] * (len(head) - 1)]) + "|", *others])


def _robustness(evaluation: dict[str, Any]) -> list[str]:
    found = robustness_rows(evaluation)
    return ["### With one thing changed", _table(found)] if found else []


def _limits(evaluation: dict[str, Any]) -> list[str]:
    limits = [doubt["text"] for doubt in evaluation.get("warnings", [])]
    best = best_student(evaluation)
    if best is not None and (answer := best[1].get("non_inferior")) and answer["decision"] == "undecided":
        limits.append(f"whether {best[0]} keeps what it should of its teacher was not decided by these episodes")
    robust = evaluation.get("robustness")
    if not robust:
        limits.append("nothing is known of how it does where the environment differs from the one named here")
    else:
        limits += [f"not tried: {name}, since {why}" for name, why in robust["left_out"].items()]
    settings = evaluation["env_kwargs"]
    return [f"all of this is of {evaluation['env']}" + (f" with {settings}" if settings else "") + " alone", *limits]


def _again(evaluation: dict[str, Any], config: str) -> list[str]:
    version = evaluation["versions"].get("rldistill")
    said = f", with rldistill {escaped(str(version))}" if version else ""
    if not config:
        return ["The run's configuration is missing."]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", config)), default=0))
    return [
        f"Save this as `config.yaml`, then `rldistill run config.yaml`{said}. The teacher it names has to be there.",
        f"{fence}yaml\n{config.rstrip()}\n{fence}",
    ]
