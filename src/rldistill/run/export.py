"""Export of the students of a run, and of any other policy, and their publication on the Hub."""

import dataclasses
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.console import Console

from rldistill.core.errors import ConfigError, CorruptArtifactError, did_you_mean
from rldistill.core.fields import explain, read
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import adapt_env, spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.videos import LABELS
from rldistill.evaluation.worlds import evaluation_env
from rldistill.exporters.certificate import FILE, Certificate, require_plain_env
from rldistill.exporters.config import ExportConfig
from rldistill.exporters.export import export_policy, formats_of
from rldistill.exporters.metadata import ExportContext
from rldistill.io import hub
from rldistill.io.atomic import Mode, list_files, sha256_file
from rldistill.io.progress import track
from rldistill.io.untrusted import read_own, require_confined
from rldistill.recipes.job import Run
from rldistill.recipes.tasks import task_runs
from rldistill.reporting.model_card import model_card
from rldistill.reporting.sections import certificate
from rldistill.run.config import read_yaml
from rldistill.run.folder import record_run, require_result, stage_of_run
from rldistill.students.keras import FILE as KERAS
from rldistill.students.storage import DOCUMENT, TENSORS, load_native, read_document
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import SavedTeacher

CARD, VIDEO, EXPORT = "README.md", "replay.mp4", "export/"
"""Names in a repository; the Hub shows a video of this name beside the card."""


@stage_of_run
def run_export(run: Run, mode: Mode = "new", quiet: bool = False) -> list[Certificate]:
    """Export each student of a run, with its first training seed, into `export/NAME/`; in the folder of each task.

    A student whose certificate is there and belongs to its policy is not exported again with mode="resume".

    Raises:
        ConfigError: The run has no student of a name in `export.students`.
    """
    require_exported(run)
    if run.tasks:
        return [made for part in task_runs(run).values() for made in run_export(part, mode, quiet)]
    env = evaluation_env(run.env, run.evaluate).view_of("student")
    dataset = run.read_dataset() if run.recipe.needs_dataset and run.dataset_folder.exists() else None
    certificates = []
    with record_run(run, mode, "export"):
        for name in _exported(run):
            folder, source = run.out / "export" / name, run.policy_folders(name)[run.seeds[0]]
            require_result(source / "policy.json", "student", "distill")
            policy, new = load_native(source), mode
            if mode == "resume":
                certificate = None
                with suppress(CorruptArtifactError):  # exported again
                    certificate = Certificate.read(folder)
                if certificate is not None and _is_current(certificate, policy, env, run.export or ExportConfig()):
                    certificates.append(certificate)
                    continue
                new = "overwrite"
            with track(f"export {name}", "episodes", quiet) as progress:
                context = _context(run.out, source, folder, name, run.seed, dataset)
                config = run.export or ExportConfig()
                certificates.append(export_policy(policy, env, folder, config, context, new, progress))
            Console().print(certificates[-1])
    return certificates


def require_exported(run: Run) -> None:
    """Raise ConfigError if the run has no student of a name in `export.students`."""
    for name in run.export.students if run.export is not None else ():
        if name not in run.students:
            raise ConfigError(f"export.students: there is no student {name!r}.{did_you_mean(name, run.students)}")


def _exported(run: Run) -> list[str]:
    chosen = run.export.students if run.export is not None else ()
    return [name for name in run.students if not chosen or name in chosen]


def failed_exports(run: Run) -> list[str]:
    """Return the reasons why exported files of a run do not pass."""
    parts = [run, *task_runs(run).values()]
    folders = [part.out / "export" / name for part in parts for name in _exported(part) if run.export is not None]
    return [reason for folder in folders if (folder / FILE).exists() for reason in Certificate.read(folder).failures]


def _is_current(certificate: Certificate, policy: Policy, env: EnvConfig, config: ExportConfig) -> bool:
    """Return True if an export passed, and was one of this policy in this environment with these settings."""
    made = ExportConfig(tuple(certificate.formats), certificate.states, certificate.episodes)  # type: ignore[arg-type]
    wanted = dataclasses.replace(config, formats=formats_of(config, policy), students=())
    same_policy = certificate.fingerprint == fingerprint(policy)
    return same_policy and made == wanted and certificate.env == env and not certificate.failures


@dataclasses.dataclass(frozen=True)
class ExportSource:
    """Policy to export: a student in the folder of a run, or any saved policy.

    Attributes:
        path: Folder of a run, or path of a policy.
        student: Name of the student of the run; by default its only one.
        env: Environment of a policy that is not in a run.
        seed: Training seed of the student.
    """

    path: str
    student: str | None = None
    env: EnvConfig | None = None
    seed: int | None = None

    @property
    def is_run(self) -> bool:
        """True if the path is the folder of a run."""
        return (Path(self.path) / "students").is_dir()

    def export(
        self, config: ExportConfig, out: Path | None = None, mode: Mode = "new", quiet: bool = False
    ) -> tuple[Path, Certificate]:
        """Export the policy; return the folder of the files and the certificate.

        Raises:
            ConfigError: No such student, or no environment.
            UntrustedFileError: The folder of the run names code as its environment; pass `env`.
        """
        if self.is_run:
            return self._export_student(config, out, mode, quiet)
        if self.env is None:
            raise ConfigError(f"--env: {self.path} is no folder of a run. Name the environment of the policy.")
        if self.student is not None:
            raise ConfigError(f"--student: {self.path} is no folder of a run, and has no students. Remove the option.")
        if out is None:
            raise ConfigError("--out: name a folder for the files of a policy that is not in a run.")
        policy = SavedTeacher(self.path).load(spec_from_env(self.env))
        env = adapt_env(self.env, policy)
        source = os.path.relpath(self.path, out) if Path(self.path).exists() else self.path
        with track("export", "episodes", quiet) as progress:
            return out, export_policy(policy, env, out, config, ExportContext(source), mode, progress)

    def _export_student(
        self, config: ExportConfig, out: Path | None, mode: Mode, quiet: bool
    ) -> tuple[Path, Certificate]:
        run, (name, source) = Path(self.path), self.find_student()
        folder = out or run / "export" / name
        env = self.env or _env_of_run(run)
        dataset = None
        if (run / "dataset" / "manifest.json").exists():
            dataset = Dataset.read([run / "dataset"])
        with track(f"export {name}", "episodes", quiet) as progress:
            config_file = run / "config.yaml"
            run_seed = read_yaml(config_file).get("seed", 0) if config_file.exists() else 0
            context = _context(run, source, folder, name, run_seed if isinstance(run_seed, int) else 0, dataset)
            return folder, export_policy(load_native(source), env, folder, config, context, mode, progress)

    def find_student(self) -> tuple[str, Path]:
        """Return the name of the student of the run, and its folder; raise ConfigError if it is not clear."""
        run = Path(self.path)
        if not self.is_run:
            raise ConfigError(f"{run}: it is no folder of a run with students. Name one.")
        name = self._student_name(run)
        seeds = sorted(
            int(path.name[5:]) for path in (run / "students" / name).glob("seed-*") if path.name[5:].isdigit()
        )
        seed = self.seed if self.seed is not None else next(iter(seeds), 0)
        source = run / "students" / name / f"seed-{seed}"
        require_result(source / "policy.json", "student", "distill")
        return name, source

    def _student_name(self, run: Path) -> str:
        if (run / "tasks").is_dir():
            tasks = ", ".join(sorted(str(path) for path in (run / "tasks").iterdir()))
            raise ConfigError(f"{run} is the run of several tasks. Name that of one: {tasks}.")
        names = sorted(path.name for path in (run / "students").iterdir() if path.is_dir())
        if self.student in names:
            return str(self.student)
        if self.student is None and len(names) == 1:
            return names[0]
        listed = ", ".join(names) or "none"
        if self.student is None:
            raise ConfigError(f"--student: {run} has the students {listed}. Name one.")
        raise ConfigError(
            f"--student: {run} has no student {self.student!r}, only {listed}.{did_you_mean(self.student, names)}"
        )


def _env_of_run(run: Path) -> EnvConfig:
    """Return the environment of a run's evaluation as data: code that it names is not imported."""
    path = run / "config.yaml"
    document = {"evaluate": {}} | read_yaml(path)
    if isinstance(env := document.get("env"), str):
        document["env"] = {"id": env}
    found: dict[str, Any] = {}
    for key, kind in (("env", EnvConfig), ("evaluate", EvaluateConfig)):
        try:
            found[key] = read(kind, document.get(key))
        except ValidationError as error:
            raise ConfigError(f"{path}: {key}: {explain(error.errors()[0])}. Export with --env.") from None
    kwargs = {**found["env"].kwargs, **found["evaluate"].env_kwargs}
    return require_plain_env(dataclasses.replace(found["env"], kwargs=kwargs), path)


def _context(run: Path, source: Path, folder: Path, name: str, seed: int, dataset: Dataset | None) -> ExportContext:
    """Return the origin of a student: its scores, its teacher and its dataset."""
    provenance = read_document(source).provenance
    facts: dict[str, Any] = {"env_steps": provenance.env_steps, "versions": provenance.versions}
    if (run / "evaluation.json").exists() and (result := Evaluation.read(run / "evaluation.json").policies.get(name)):
        scores = {"mean": result.mean.value, "ci95": result.mean.ci95}
        facts["evaluation"] = scores | {"normalized": result.normalized.value if result.normalized else None}
    if (path := run / "dataset" / "manifest.json").exists():
        facts |= {"dataset": sha256_file(path), "teacher": Manifest.read(path.parent).rounds[0].teacher}
    return ExportContext(os.path.relpath(source, folder), seed, dataset, facts)


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
