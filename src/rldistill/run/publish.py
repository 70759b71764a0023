"""Publication of a student of a run on the Hugging Face Hub."""

import re
from pathlib import Path
from typing import NamedTuple

from rldistill.core.errors import ConfigError
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.videos import LABELS
from rldistill.exporters.certificate import Certificate
from rldistill.io import hub
from rldistill.io.atomic import list_files
from rldistill.io.untrusted import read_own, require_confined
from rldistill.reporting.model_card import model_card
from rldistill.reporting.sections import certificate
from rldistill.run.export import ExportSource
from rldistill.students.keras import FILE as KERAS
from rldistill.students.storage import DOCUMENT, TENSORS, read_document

CARD, VIDEO, EXPORT = "README.md", "replay.mp4", "export/"
"""Names in a repository; the Hub shows a video of this name beside the card."""


class Published(NamedTuple):
    """Address of a repository, the names of the files, and remarks on those that are missing."""

    url: str
    files: list[str]
    remarks: list[str]


def publish_student(
    run: Path, student: str | None, repository: str, private: bool = False, overwrite: bool = False
) -> Published:
    """Write a student to the Hub with its model card, its exported files and certificate, and its best video.

    Args:
        run: Folder of an evaluated run.
        student: Name of the student; by default its only one.
        repository: `OWNER/NAME`; it is created if there is none.
        private: True for a repository that only its owner sees.
        overwrite: True to replace the files of a repository that has some.

    Raises:
        ConfigError: No such student, no token, no right to write, or a repository that has files.
        CorruptArtifactError: The run has no evaluation, or a file of it was changed.
        UntrustedFileError: The folder has links that lead out of it.
    """
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository) is None:
        raise ConfigError(f"--repo: found {repository!r}, expected OWNER/NAME, as in me/cartpole-tree.")
    name, folder = ExportSource(str(run), student).find_student()
    require_confined(run, ("dataset",))
    evaluation, exported = Evaluation.read(run / "evaluation.json"), certificate(run, name)
    if name not in evaluation.students:
        raise ConfigError(f"--student: the evaluation of {run} has no {name!r}. Evaluate again (`rldistill evaluate`).")
    read_document(folder)  # complete and unchanged
    files: dict[str, Path | bytes] = {
        file: path for file in (DOCUMENT, TENSORS, KERAS) if (path := folder / file).exists()
    }
    files[CARD] = _card(run, name, evaluation, exported, repository).encode()
    remarks = []
    if exported is not None:
        files |= {f"{EXPORT}{path.name}": path for path in sorted(list_files(run / "export" / name)) if path.is_file()}
    else:
        remarks.append(f"no exported files. `rldistill export {run} --student {name}` makes ONNX, C and a certificate.")
    videos = [path for label in LABELS if (path := run / "videos" / f"{name}-{label}.mp4").exists()]
    if videos:
        files[VIDEO] = videos[0]
    else:
        remarks.append("no video. `rldistill evaluate` with evaluate.videos=true records some.")
    replaces = (
        (lambda file: file.startswith(EXPORT) or file in (DOCUMENT, TENSORS, KERAS, VIDEO)) if overwrite else None
    )
    url = hub.commit(repository, files, f"Add the student {name}", private, replaces)
    return Published(url, sorted(files), remarks)


def _card(run: Path, name: str, evaluation: Evaluation, exported: Certificate | None, repository: str) -> str:
    """Return the model card of a run without its other students."""
    others = evaluation.students.keys() - {name}
    document = evaluation.to_dict()
    for key in ("policies", "warnings", "efficiency"):
        document[key] = {policy: own for policy, own in document[key].items() if policy not in others}
    for key, part in (("robustness", "perturbations"), ("teams", "compositions")):
        for results in (document.get(key) or {}).get(part, {}).values():
            for policy in others & results.keys():
                del results[policy]
    config = run / "config.yaml"
    text = read_own(config).decode(errors="replace") if config.exists() else ""
    own = Evaluation.parse(document, run / "evaluation.json")
    return model_card(own, text, {} if exported is None else {name: exported}, repository)
