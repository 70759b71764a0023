"""Export of a policy to files that run without this package, with a certificate."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.exporters.c_source import CSource, write_c
from rldistill.exporters.c_test import write_c_test
from rldistill.exporters.certificate import FILE as CERTIFICATE
from rldistill.exporters.certificate import (
    GOOD_AGREEMENT,
    MIN_INT8_AGREEMENT,
    Certificate,
    FormatRecord,
)
from rldistill.exporters.comparison import compare
from rldistill.exporters.config import DEFAULT_FORMATS, ExportConfig, Format
from rldistill.exporters.formats import FILES, PATTERN, file_of, missing_tool, open_runtime, require_packages
from rldistill.exporters.int8 import NUM_CALIBRATION_STATES, SCHEMES, quantize_onnx
from rldistill.exporters.javascript import write_html
from rldistill.exporters.lowering import lower_policy
from rldistill.exporters.measures import Measures
from rldistill.exporters.metadata import ExportContext, kind_of, names_by_entry, onnx_metadata
from rldistill.exporters.onnx import write_onnx
from rldistill.exporters.program import ExportError, Program
from rldistill.exporters.runtimes import Interface
from rldistill.exporters.sb3 import write_sb3
from rldistill.exporters.traced import trace_onnx
from rldistill.exporters.vectors import FILE as VECTORS
from rldistill.exporters.vectors import NUM_STEPS, Vectors, compute_vectors, raw_entries
from rldistill.io.atomic import Mode, require_mode, sha256_file, write_atomic
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.provenance import provenance
from rldistill.policies.agent import inference_threads
from rldistill.policies.wrappers import with_action_mask
from rldistill.students.team import TeamPolicy
from rldistill.teachers.fingerprint import fingerprint


def export_policy(
    policy: Policy,
    env: EnvConfig,
    folder: Path | str,
    config: ExportConfig = ExportConfig(),  # noqa: B008 - it is frozen
    context: ExportContext = ExportContext(),  # noqa: B008 - it is frozen
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> Certificate:
    """Write a policy in several formats into `folder`, and the certificate `parity.json`.

    Nothing is left behind by an export that fails.

    Args:
        policy: Any policy that `load_policy` returns.
        env: Environment as the policy observes it.
        folder: Folder for the files.
        config: Formats, and the size of the certificate.
        context: Origin of the policy.
        mode: "new" refuses a folder that exists, "overwrite" discards it.
        progress: True to show it on stderr, False for none, or a receiver.

    Raises:
        ConfigError: The folder exists.
        ExportError: No translation of the policy, or a format that does not fit it.
        MissingExtraError: A package that a format needs is not installed.
    """
    folder = Path(folder)
    require_mode(mode, ("new", "overwrite"))
    if mode == "new" and folder.exists() and any(folder.iterdir()):
        raise ConfigError(f'{folder} exists. Discard it with mode="overwrite" (--overwrite).')
    policy = fitted(policy, env)
    with stage_progress(progress, "export", "episodes") as report, inference_threads(1), _whole_folder(folder) as work:
        return _Export(policy, env, work, config, context, report).run()


def fitted(policy: Policy, env: EnvConfig) -> Policy:
    """Return the policy with the action mask of its environment; raise SpecMismatchError if they do not fit."""
    spec = spec_from_env(env)
    policy = with_action_mask(policy, spec)
    policy.spec.require_same_input(spec, "the policy", env.id)
    return policy


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `folder` at the end, unless there is an error."""
    _require_own(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield work
        _require_own(folder)
        shutil.rmtree(folder, ignore_errors=True)
        work.chmod(0o755)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _require_own(folder: Path) -> None:
    """Raise ConfigError if a folder holds anything but the files of an export."""
    own = {CERTIFICATE, VECTORS, *(name for names in FILES.values() for name in names)}
    for path in folder.iterdir() if folder.exists() else ():
        if not (path.name in own or fnmatch(path.name, PATTERN)) or not path.is_file() or path.is_symlink():
            raise ConfigError(
                f"{path}: not written by an export, so {folder} is not discarded. Move it away, or use another folder."
            )
    if folder.exists() and any(folder.iterdir()) and not (folder / CERTIFICATE).exists():
        raise ConfigError(f"{folder}: not the folder of an export, so it is not discarded. Use another folder.")


class _Export:
    """One export; each method `_<format>` writes the files of a format and returns its runtime."""

    def __init__(
        self, policy: Policy, env: EnvConfig, folder: Path, config: ExportConfig, context: ExportContext,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.policy, self.env, self.folder, self.config, self.context = policy, env, folder, config, context
        self.interface = Interface.of(policy)
        self.measures = Measures(policy, env, self.interface, config, context.seed, context.dataset, progress)
        self.cost = self.measures.cost
        self.c_memory = 0
        self.discrete = policy.spec.head.discrete
        self.remarks: dict[str, str] = {}
        self.records: dict[str, FormatRecord] = {}

    def run(self) -> Certificate:
        """Write all formats and the certificate."""
        formats = formats_of(self.config, self.policy)
        require_packages(formats)
        self.vectors.write(self.folder / VECTORS)
        for name in formats:
            self.records[name] = self.format(name)
        certificate = Certificate(
            policy=self.context.name,
            fingerprint=fingerprint(self.policy),
            kind=kind_of(self.policy),
            env=self.env,
            seed=self.context.seed,
            spec=self.policy.spec,
            state_shape=self.interface.state_shape,
            rounding=self.measures.rounding,
            states=self.config.states,
            episodes=self.config.episodes,
            parameters=self.cost.parameters,
            macs=self.cost.macs,
            torch_latency_us=self.cost.latency_us,
            formats=self.records,
            vectors=sha256_file(self.folder / VECTORS),
            versions=provenance(self.context.seed)["versions"],
        )
        certificate.write(self.folder)
        return Certificate.read(self.folder)

    def format(self, name: Format) -> FormatRecord:
        """Write one format and compare it with the original."""
        try:
            getattr(self, f"_{name}")()
        except ExportError as error:
            if self.config.formats:
                raise
            return FormatRecord(refused=str(error))
        files = FILES[name] or sorted(path.name for path in self.folder.glob(PATTERN))
        main = files if name == "agents" else files[:1]
        record = FormatRecord(
            files={file: sha256_file(self.folder / file) for file in files},
            bytes=sum((self.folder / file).stat().st_size for file in main),
            ram=self.c_memory if name == "c" else None,
            remark=self.remarks.get(name),
        )
        if (reason := missing_tool(name)) is not None:
            return record.model_copy(update={"remark": reason})
        runtime = open_runtime(name, self.folder, self.interface, files, self.c_memory)
        record = record.model_copy(update=self.measures.fields(name, runtime, self.folder))
        return self.accepted_int8(record) if name == "int8" else record

    def accepted_int8(self, record: FormatRecord) -> FormatRecord:
        """Return the record of an int8 model; remove the file if the model does not play like the original."""
        assert record.closed_loop is not None
        agreement, decision = record.differences["own"].agreement, record.closed_loop.keeps_95
        # Continuous actions are never equal, so that only the returns count.
        if decision != "no" and (agreement >= MIN_INT8_AGREEMENT or not self.discrete):
            return record
        (self.folder / "student.int8.onnx").unlink()
        reason = (
            f"the quantized policy chooses {agreement:.1%} of the actions of the original and returns "
            f"{record.closed_loop.mean:.4g} of {record.closed_loop.original_mean:.4g}. Use onnx."
        )
        return record.model_copy(update={"files": {}, "bytes": 0, "refused": reason})

    @cached_property
    def program(self) -> Program:
        """Program of the policy; raises ExportError if it has a layer of the user's own."""
        return lower_policy(self.policy)

    @cached_property
    def vectors(self) -> Vectors:
        """Test vectors."""
        steps = self.measures.consecutive.first(NUM_STEPS)
        return compute_vectors(self.policy, steps.obs.numpy(), steps.starts)

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Metadata of the ONNX files of the policy."""
        return onnx_metadata(self.policy, self.env, self.context)

    # Formats

    @cached_property
    def onnx_bytes(self) -> bytes:
        """Content of `student.onnx`."""
        try:
            return write_onnx(self.program, self.metadata)
        except ExportError:
            return trace_onnx(self.policy, self.interface, self.metadata)

    def _onnx(self) -> None:
        self.write("student.onnx", self.onnx_bytes)

    def _int8(self) -> None:
        recurrent = self.interface.state_shape is not None  # held-out observations come without their states
        states = (self.measures.own if recurrent else self.measures.heldout or self.measures.own).first(
            NUM_CALIBRATION_STATES
        )
        inputs: dict[str, NDArray[Any]] = raw_entries(states.obs, self.policy.spec)
        if states.state is not None:
            inputs["state_in"] = states.state.numpy().astype(np.float32)
        for scheme in SCHEMES:
            self.write("student.int8.onnx", quantize_onnx(self.onnx_bytes, inputs, self.metadata, scheme))
            self.remarks["int8"] = scheme
            runtime = open_runtime("int8", self.folder, self.interface, ())
            difference = compare(self.policy, runtime, self.measures.own.first(NUM_CALIBRATION_STATES))
            # Actions that are numbers are never equal.
            if difference.agreement >= GOOD_AGREEMENT or (difference.mean <= 1 - GOOD_AGREEMENT and not self.discrete):
                break

    def _c(self) -> None:
        source = c_source(self.program, self.policy, self.env)
        self.c_memory = source.memory
        files = {"student.c": source.source, "student.h": source.header,
                 "student_test.c": write_c_test(self.program, self.vectors)}  # fmt: skip
        for name, text in files.items():
            self.write(name, text.encode("ascii"))

    def _html(self) -> None:
        facts = {"title": f"{kind_of(self.policy)} for {self.env.id}", "env": self.env.id,
                 "text": f"{self.cost.parameters or 0:,} parameters", "names": names_by_entry(self.policy)}  # fmt: skip
        self.write("student.html", write_html(self.program, self.vectors, facts).encode("ascii"))

    def _sb3(self) -> None:
        write_sb3(self.policy, self.env, self.folder / "student.zip")

    def _agents(self) -> None:
        if not isinstance(self.policy, TeamPolicy):
            raise ExportError(f"export.formats: agents is for a team, not for a {kind_of(self.policy)}. Use onnx.")
        for network, agents in self.policy.groups.items():
            member = self.policy.member(network)
            self.write(
                file_of(network),
                write_onnx(lower_policy(member), onnx_metadata(member, self.env, self.context, agents)),
            )

    def write(self, name: str, content: bytes) -> None:
        """Write one file."""
        write_atomic(self.folder / name, lambda temporary: temporary.write_bytes(content))


def formats_of(config: ExportConfig, policy: Policy) -> tuple[Format, ...]:
    """Return the formats of an export, by default with the networks of a team."""
    return config.formats or (*DEFAULT_FORMATS, *(("agents",) if isinstance(policy, TeamPolicy) else ()))


def c_source(program: Program, policy: Policy, env: EnvConfig) -> CSource:
    """Return the C source of a policy."""
    return write_c(program, f"{kind_of(policy)} for {env.id}, written by rldistill")
