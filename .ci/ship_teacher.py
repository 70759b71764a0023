"""Put a trained teacher into the zoo, in half precision: `python .ci/ship_teacher.py RUN_FILE [FOLDER]`.

FOLDER is that of `rldistill train RUN_FILE`, or that of a student by DAgger, such as `runs/NAME/students/mlp/seed-0`.
`src/rldistill/zoo/NAME`, with the name of the run file, gets the policy, the run file, the learning curve, and 100
episodes of the teacher, of the same in full precision (`float32`) and of random play.
"""

import argparse
import shutil
from pathlib import Path

from rldistill import EvaluateConfig, evaluate, load_policy
from rldistill.io.atomic import read_json
from rldistill.io.metrics import Metrics
from rldistill.io.trackers import EVENTS
from rldistill.run.config import load_run
from rldistill.students.storage import save_policy

ZOO = Path(__file__).parents[1] / "src" / "rldistill" / "zoo"


def main() -> None:
    """Write the folder of the teacher, and print its scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_file", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", help="by default that of the run file")
    parser.add_argument("--episodes", type=int, default=100)
    arguments = parser.parse_args()
    run = load_run(arguments.run_file)
    trained, target = arguments.folder or run.out, ZOO / arguments.run_file.stem
    is_student = (trained / "policy.json").exists()
    if not is_student:
        trained /= "teacher"
    policy = load_policy(trained)
    target.mkdir(exist_ok=True)
    provenance = read_json(trained / "policy.json")["provenance"]
    provenance["command"] = ["rldistill", "run" if is_student else "train", arguments.run_file.as_posix()]
    if is_student:
        rounds = sorted(trained.glob("round-*/score.json"), key=lambda file: int(file.parent.name[6:]))
        steps, more = run.collect.steps, run.recipe.steps_per_round
        rows = [{"step": steps + more * number} | read_json(file) for number, file in enumerate(rounds)]
        provenance |= {"algorithm": "DAgger", "env_steps": rows[provenance["round"]]["step"]}
        Metrics(target, "curve.jsonl").write(rows)
        (target / EVENTS).unlink(missing_ok=True)
    else:
        shutil.copy(trained / "curve.jsonl", target)
    save_policy(policy, target, provenance | {"license": "MIT"}, half=True)
    shutil.copy(arguments.run_file, target / "config.yaml")
    policies = {"teacher": load_policy(target), "float32": policy}
    config = EvaluateConfig(arguments.episodes, videos=False, metrics=run.evaluate.metrics)
    print(evaluate(run.env, policies, config, target))
    shutil.rmtree(target / "disagreements", ignore_errors=True)


if __name__ == "__main__":
    main()
