"""Model card of a run in the format of the Hugging Face Hub."""

import re
import statistics
from collections.abc import Mapping
from typing import Any

import yaml

from rldistill.evaluation.results import Evaluation, policy_rows, robustness_rows, team_rows, verdict
from rldistill.evaluation.tables import Rows
from rldistill.evaluation.worlds import world_rows
from rldistill.exporters.certificate import Certificate
from rldistill.reporting.charts import templates

LEFT_OUT_COLUMNS = ("IQM", "discounted")


def model_card(
    evaluation: Evaluation, config: str, exports: Mapping[str, Certificate] = {}, repository: str | None = None
) -> str:
    """Return the model card of a run: front matter, verdict, results, certificates, limits, and the run file `config`.

    All text is escaped. With a `repository` of the Hugging Face Hub, the card also has the use of the policy in it.
    """
    version = evaluation.versions.get("rldistill")
    results = [[cell for cell in row if cell.column not in LEFT_OUT_COLUMNS] for row in policy_rows(evaluation)]
    values = {
        "evaluation": evaluation,
        "front": yaml.safe_dump(_front_matter(evaluation), sort_keys=False, allow_unicode=True),
        "verdict": verdict(evaluation),
        "tables": [
            ("", results),
            ("Other worlds", world_rows(evaluation.worlds)),
            ("Perturbed environments", robustness_rows(evaluation)),
            ("Mixed teams", team_rows(evaluation)),
        ],
        "limits": _limits(evaluation),
        "package": f" with rldistill {escaped(str(version))}" if version else "",
        "fence": "`" * max(3, 1 + max(map(len, re.findall("`+", config)), default=0)),
    }
    card = templates().get_template("model_card.md.jinja")
    return card.render(values, exports=exports, config=config, repository=repository, escaped=escaped, table=_table)


def escaped(text: str) -> str:
    """Escape text for Markdown, on one line."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&$])", r"\\\1", one_line).replace("://", ":\\//")


def _front_matter(evaluation: Evaluation) -> dict[str, Any]:
    env, models = evaluation.env, []
    for name, entry in evaluation.students.items():
        reward = f"{entry.mean.value:.2f} +/- {statistics.pstdev(entry.returns):.2f}"
        score = entry.normalized.value if entry.normalized else None
        metrics: list[dict[str, Any]] = [
            {"type": "mean_reward", "name": "mean_reward", "value": reward},
            {"type": "normalized_score", "name": "share of the teacher's lead", "value": score},
            {"type": "parameters", "name": "parameters", "value": entry.parameters},
            *({"type": key, "name": key, "value": own and own.value} for key, own in entry.metrics.items()),
        ]
        result = {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"name": env, "type": env},
            "metrics": [{**metric, "verified": False} for metric in metrics if metric["value"] is not None],
        }
        models.append({"name": name, "results": [result]})
    return {
        "library_name": "rldistill",
        "pipeline_tag": "reinforcement-learning",
        "tags": [env, "reinforcement-learning", "deep-reinforcement-learning", "policy-distillation", "rldistill"],
        "model-index": models,
    }


def _table(table: Rows) -> str:
    head = [cell.column for cell in table[0]]
    body = [[cell.text + (f" ({cell.note})" if cell.note else "") for cell in row] for row in table]
    lines = [map(escaped, row) for row in (head, *body)]
    first, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([first, "|" + "|".join([" --- ", *[" ---: "] * (len(head) - 1)]) + "|", *rest])


def _limits(evaluation: Evaluation) -> list[str]:
    settings = f" with {evaluation.env_kwargs}" if evaluation.env_kwargs else ""
    limits = [f"all results are for {evaluation.env}{settings}", *evaluation.warnings.values()]
    if evaluation.best_student is not None:
        name, student = evaluation.best_student
        if student.non_inferiority is not None and student.non_inferiority.decision == "undecided":
            limits.append(f"these episodes do not decide whether {name} keeps its share of the teacher's lead")
    if evaluation.robustness is None:
        limits.append("robustness to changes of the environment was not measured")
    else:
        limits += [f"not measured: {name}, because {why}" for name, why in evaluation.robustness.left_out.items()]
    return limits
