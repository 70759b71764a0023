"""Verification of exported files: their hashes, their test vectors, and the certificate once more."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rldistill.core.errors import RLDistillError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.exporters.certificate import Certificate, FormatRecord, require_plain_env
from rldistill.exporters.config import FORMATS, ExportConfig, Format
from rldistill.exporters.export import c_source, fitted
from rldistill.exporters.formats import missing_tool, open_runtime
from rldistill.exporters.lowering import lower_policy
from rldistill.exporters.measures import Measures
from rldistill.exporters.program import ExportError
from rldistill.exporters.runtimes import ExportedPolicy, Interface
from rldistill.exporters.vectors import FILE as VECTORS
from rldistill.exporters.vectors import Vectors
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.untrusted import MAX_WEIGHTS_BYTES, read_regular
from rldistill.policies.agent import inference_threads
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import load_policy
from rldistill.teachers.zoo import ZOO

TOLERANCE = 1e-4
FOREIGN_C = (
    "not compiled: the source is not the one that this version writes for the original policy. Read it, then use "
    "--run-code."
)


def verify_export(
    folder: Path | str,
    env: EnvConfig | None = None,
    dataset: Dataset | None = None,
    progress: Progress | bool = True,
    *,
    run_code: bool = False,
) -> Certificate:
    """Compute the certificate of exported files again, from the files that are there.

    The files are compared with their hashes and with the test vectors. If the original policy is where it was, the
    states and episodes of the certificate are compared again, too. The folder may come from anybody: C source is run
    only if it is the one that this version writes for the original policy, and SB3's reader, which runs code of the
    zip, is not used.

    Args:
        folder: Folder of the export.
        env: Environment of the policy, by default that of the certificate.
        dataset: Dataset whose held-out observations are compared.
        progress: True to show it on stderr, False for none, or a receiver.
        run_code: True to run the code of a folder that you trust: any C source, and the zip in SB3.

    Returns:
        The new certificate; `failures` is empty if all is well.

    Raises:
        CorruptArtifactError: A file is missing or was changed.
        UntrustedFileError: The certificate names code as its environment; pass `env`.
    """
    folder = Path(folder)
    certificate = Certificate.read(folder)
    vectors, measures = Vectors.read(folder / VECTORS), None
    interface = Interface(certificate.spec, certificate.state_shape)
    source = folder.parent.parent / "dataset"  # of the run that the folder lies in
    if dataset is None and (source / "manifest.json").exists():
        dataset = Dataset.read([source])
    records: dict[str, FormatRecord] = {}
    with stage_progress(progress, "verify", "episodes") as report, inference_threads(1):
        if (policy := _original(folder, certificate)) is not None:
            env = env or require_plain_env(certificate.env, folder)
            policy = fitted(policy, env)
            config = ExportConfig((), certificate.states, certificate.episodes)
            measures = Measures(policy, env, interface, config, certificate.seed, dataset, report)
        for name in FORMATS:
            if (record := certificate.formats.get(name)) is not None and not record.refused:
                ram = record.ram if run_code or name != "c" else _memory_of_own_c(folder, policy, env)
                # Only files and sizes are kept from the certificate: no figure is shown that was not measured now.
                kept = FormatRecord(files=record.files, bytes=record.bytes, ram=record.ram)
                if (remark := missing_tool(name)) is None and name == "c" and ram is None:
                    remark = FOREIGN_C
                fields: dict[str, Any] = {"remark": remark}
                if remark is None:
                    runtime = open_runtime(name, folder, interface, record.files, ram or 0, run_code)
                    fields = _fields(name, runtime, vectors)
                    if measures is not None:
                        fields |= {"remark": None} | measures.fields(name, runtime, folder)
                records[name] = kept.model_copy(update=fields)
        rounding = 0.0 if measures is None else measures.rounding
    return certificate.model_copy(update={"formats": records, "rounding": rounding})


def _fields(name: Format, runtime: ExportedPolicy, vectors: Vectors) -> dict[str, Any]:
    """Return the result of the test vectors, and the remark for a format of which nothing else is known."""
    reason = "the original policy is not there, or was changed"
    if name == "int8":
        return {"remark": f"not compared: {reason}"}
    return {"remark": f"compared with the test vectors only: {reason}", "wrong_vectors": wrong_steps(runtime, vectors)}


def _memory_of_own_c(folder: Path, policy: Policy | None, env: EnvConfig | None) -> int | None:
    """Return the size of the struct of the C source; None if it is not what this version writes for the policy."""
    if policy is None or env is None:
        return None
    try:
        source = c_source(lower_policy(policy), policy, env)
    except ExportError:
        return None
    texts = {"student.c": source.source, "student.h": source.header}
    is_own = all(read_regular(folder / name, MAX_WEIGHTS_BYTES) == text.encode() for name, text in texts.items())
    return source.memory if is_own else None


def wrong_steps(runtime: ExportedPolicy, vectors: Vectors) -> int:
    """Return the number of consecutive steps whose action or parameters differ by more than 1e-4 relative."""
    wrong, state = 0, runtime.initial_state(1)
    for step, start in enumerate(vectors.starts):
        if start:
            state = runtime.initial_state(1)
        entries = {name: values[step : step + 1] for name, values in vectors.entries.items()}
        before = None if state is None else state.numpy()
        action, params, after = runtime.run(entries, before)
        state = None if after is None else torch.from_numpy(after)
        scale = TOLERANCE * np.maximum(1, np.abs(vectors.params[step]))
        same = (np.abs(params[0] - vectors.params[step]) <= scale).all()
        wrong += not (same and np.allclose(action[0], vectors.action[step], TOLERANCE, TOLERANCE))
    return wrong


def _original(folder: Path, certificate: Certificate) -> Policy | None:
    """Return the policy that was exported, if it is where it was and did not change."""
    path = certificate.policy if certificate.policy.startswith(ZOO) else folder / certificate.policy
    if isinstance(path, Path) and not path.exists():
        return None
    try:
        policy = load_policy(path, spec=certificate.spec)
    except RLDistillError:
        return None
    return policy if fingerprint(policy) == certificate.fingerprint else None
