"""Put a trained teacher into the zoo, in half precision: `python .ci/ship_teacher.py RUN_FILE [FOLDER]`.

FOLDER is that of `rldistill train RUN_FILE`. `src/rldistill/zoo/NAME`, with the name of the run file, gets the policy,
the run file, the learning curve, and 100 episodes of the teacher, of the same in full precision (`float32`) and of
random play.
"""

import argparse
import json
import shutil
from pathlib import Path

from rldistill import EvaluateConfig, evaluate, load_policy
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
    trained, target = (arguments.folder or run.out) / "teacher", ZOO / arguments.run_file.stem
    policy = load_policy(trained)
    provenance = json.loads((trained / "policy.json").read_text(encoding="utf-8"))["provenance"]
    command = ["rldistill", "train", arguments.run_file.as_posix()]
    save_policy(policy, target, provenance | {"command": command, "license": "MIT"}, half=True)
    shutil.copy(arguments.run_file, target / "config.yaml")
    shutil.copy(trained / "curve.jsonl", target)
    policies = {"teacher": load_policy(target), "float32": policy}
    print(evaluate(run.env, policies, EvaluateConfig(arguments.episodes, videos=False), target))
    shutil.rmtree(target / "disagreements", ignore_errors=True)


if __name__ == "__main__":
    main()
