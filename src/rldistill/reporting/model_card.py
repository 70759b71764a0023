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

LEFT_OUT_COLUMNS = ("IQM", "discounted")
USE = """```python
from rldistill import load_policy

policy = load_policy("hub:{repository}")  # pip install 'rldistill[hub]'
```

In a run file, it is a teacher, too: `teacher: hub:{repository}`. Nothing in the files is executed. The folder `export`,
if there is one, has the same policy without this package, with a certificate (`parity.json`)."""


def model_card(
    evaluation: Evaluation, config: str, exports: Mapping[str, Certificate] = {}, repository: str | None = None
) -> str:
    """Return the model card of a run: front matter, verdict, results, certificates, limits, and the run file `config`.

    All text is escaped. With a `repository` of the Hugging Face Hub, the card also has the use of the policy in it.
    """
    reproduction = ["The run's configuration is missing."]
    if config:
        version = evaluation.versions.get("rldistill")
        package = f" with rldistill {escaped(str(version))}" if version else ""
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", config)), default=0))
        reproduction = [
            f"Save this as `config.yaml` and run `rldistill run config.yaml`{package}. The teacher's files are needed.",
            f"{fence}yaml\n{config.rstrip()}\n{fence}",
        ]
    parts = [
        f"# Students of a teacher for {escaped(evaluation.env)}",
        escaped(verdict(evaluation)),
        *([] if repository is None else ["## Use", USE.format(repository=repository)]),
        "## Results",
        f"{evaluation.episodes} full episodes for each policy and training seed, with the same seeds for all. 95% "
        f"intervals are in brackets. Normalized score: 0 is {escaped(evaluation.reference)}, 1 is the teacher. The "
        "environment steps of students include their teacher's data.",
        _table([[cell for cell in row if cell.column not in LEFT_OUT_COLUMNS] for row in policy_rows(evaluation)]),
        *(["### Other worlds", _table(world_rows(evaluation.worlds))] if evaluation.worlds else []),
        *(["### Perturbed environments", _table(perturbed)] if (perturbed := robustness_rows(evaluation)) else []),
        *(["### Mixed teams", _table(teams)] if (teams := team_rows(evaluation)) else []),
        *(
            part
            for name, found in exports.items()
            for part in (f"### Exported files of {escaped(name)}", escaped(found.verdict), _table(found.rows))
        ),
        "## Limits",
        "\n".join(f"- {escaped(limit)}" for limit in _limits(evaluation)),
        "## How to reproduce",
        *reproduction,
    ]
    front = yaml.safe_dump(_front_matter(evaluation), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


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
