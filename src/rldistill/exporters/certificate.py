"""The certificate of an export, `parity.json`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.table import Table

from rldistill.core.arguments import are_small
from rldistill.core.errors import CorruptArtifactError, UntrustedFileError, short_repr
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.core.worlds import Choice
from rldistill.data.manifest import Env, Spec
from rldistill.envs.agent_views import AGENT_VIEWS, wrappers_of_agents
from rldistill.envs.multi_agent import is_published
from rldistill.evaluation.tables import NONE, Result, Rows, TableCell, rich_table
from rldistill.exporters.comparison import Difference
from rldistill.exporters.config import FLOAT_FORMATS
from rldistill.exporters.vectors import FILE as VECTORS
from rldistill.io.atomic import Document, read_json, sha256_file, write_json
from rldistill.students.storage import VIEWS

FILE = "parity.json"
MAX_DIFFERENCE, MAX_ROUNDING = 1e-5, 1e-4
NUM_ROUNDINGS = 4
"""Two programs in float32 round both, and in another order than the one that was measured."""
MAX_COMPARED = 1_000_000
"""Limit of states and episodes: a certificate from elsewhere must not play for ever."""
GOOD_AGREEMENT, MIN_INT8_AGREEMENT = 0.99, 0.9


class ClosedLoop(Document):
    """Full episodes with the same seeds as the original."""

    episodes: int
    mean: float
    ci95: tuple[float, float] | None
    original_mean: float
    equal_actions: float
    keeps_95: str


class FormatRecord(Document):
    """One exported format.

    Attributes:
        files: SHA-256 of each file by its name.
        bytes: Size of the main file.
        refused: Reason why there is no file; None if there is one.
        remark: Part of the certificate that could not be computed, such as "not compiled: no C compiler".
        wrong_vectors: Steps of the test vectors with another action or other parameters.
        differences: By the source of the states: `dataset`, `own`, and one for each kind of extreme state.
        batches: Largest difference of batches of 1 and of 64 to the original with 64.
        consecutive: Largest difference over consecutive steps with a state of its own; None if feed-forward.
        closed_loop: Play in the environment; None where the format is only compared.
        latency_us: p50 and p99 of one decision in microseconds.
        flash: Bytes of code and constants by processor, compiled for size.
        ram: Bytes of the struct.
    """

    files: dict[str, str] = Field(default_factory=dict)
    bytes: int = 0
    refused: str | None = None
    remark: str | None = None
    wrong_vectors: int = 0
    differences: dict[str, Difference] = Field(default_factory=dict)
    batches: float | None = None
    consecutive: float | None = None
    closed_loop: ClosedLoop | None = None
    latency_us: dict[str, float] | None = None
    flash: dict[str, int] = Field(default_factory=dict)
    ram: int | None = None

    def failures(self, name: str, max_difference: float) -> list[str]:
        """Return the reasons why the format does not pass, with this limit of relative differences."""
        found = []
        if self.wrong_vectors:
            found.append(f"{name}: {self.wrong_vectors} test vectors do not match. Export again.")
        for source, record in self.differences.items():
            # Beyond every limit, rounding may grow: there only the actions count.
            limit = max_difference if source in ("own", "dataset") else math.inf
            if name in FLOAT_FORMATS and (record.unequal or record.largest > limit):
                found.append(
                    f"{name}: {record.unequal} of {record.states:,} actions differ on states {source!r}; largest "
                    f"difference {record.largest:.1e}"
                )
        for quantity in ("batches", "consecutive"):
            value = getattr(self, quantity)
            if name in FLOAT_FORMATS and value is not None and value > max_difference:
                found.append(f"{name}: the largest difference over {quantity} is {value:.1e}")
        if self.closed_loop is not None and self.closed_loop.keeps_95 == "no":
            found.append(f"{name}: does not keep 95% of the original ({self.closed_loop.mean:.4g})")
        return found


class Certificate(Result):
    """Content of `parity.json`: how the exported files compare with the original policy.

    Attributes:
        rounding: Largest relative difference of the original to itself in float64.
    """

    policy: str
    fingerprint: str
    kind: str
    env: Env
    seed: int
    spec: Spec
    state_shape: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] | None
    rounding: Annotated[float, Field(ge=0)] = 0.0
    states: Annotated[int, Field(ge=1, le=MAX_COMPARED)]
    episodes: Annotated[int, Field(ge=1, le=MAX_COMPARED)]
    parameters: int | None
    macs: int | None
    torch_latency_us: dict[str, float] | None
    formats: dict[str, FormatRecord]
    vectors: str
    versions: dict[str, str]

    @property
    def failures(self) -> list[str]:
        """Reasons why a format does not pass; formats that were refused have no file and do not count."""
        records = ((name, record) for name, record in self.formats.items() if not record.refused)
        return [text for name, record in records for text in record.failures(name, self.limit)]

    @property
    def limit(self) -> float:
        """Limit of relative differences: 1e-5, or more where the original itself rounds that much."""
        return max(MAX_DIFFERENCE, min(NUM_ROUNDINGS * self.rounding, MAX_ROUNDING))

    @property
    def rows(self) -> Rows:
        """Table of the formats, with PyTorch in the first row."""
        torch_row = [TableCell("format", "torch"), *(TableCell(column, NONE) for column in COLUMNS[1:])]
        torch_row[COLUMNS.index("latency")] = _latency_cell(self.torch_latency_us)
        return [torch_row, *(_row(name, record) for name, record in self.formats.items())]

    @property
    def remarks(self) -> list[str]:
        """Reasons of refused formats and of missing parts, a larger limit of differences, then failures."""
        notes = {name: record.refused or record.remark for name, record in self.formats.items()}
        if self.limit > MAX_DIFFERENCE:
            text = f"up to {self.limit:.1e} pass; the original differs from itself in float64 by {self.rounding:.1e}"
            notes["differences"] = text
        return [*(f"{name}: {text}" for name, text in notes.items() if text), *self.failures]

    @property
    def verdict(self) -> str:
        """Result in one line."""
        if self.failures:
            return "certificate: failed"
        left = [name for name, record in self.formats.items() if not record.refused and not record.differences]
        return "certificate: passed" + (f", but not compared with the policy: {', '.join(left)}" if left else "")

    def blocks(self) -> list[Table | str]:
        """Return the table of the formats, the remarks and the verdict."""
        return [rich_table(self.rows, f"{self.kind} for {self.env.id}"), *self.remarks, self.verdict]

    def write(self, folder: Path) -> None:
        """Write the certificate, with its hash."""
        write_json(folder / FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Certificate:
        """Read the certificate of a folder and compare the files with their hashes.

        Raises:
            CorruptArtifactError: It is missing or changed, or one of its files is.
        """
        path = folder / FILE
        certificate = cls.parse(read_json(path, "Export again."), path)
        records = [{VECTORS: certificate.vectors}, *(record.files for record in certificate.formats.values())]
        for files in records:
            for name, digest in files.items():
                if not (folder / name).is_file() or sha256_file(folder / name) != digest:
                    raise CorruptArtifactError(f"{folder / name}: missing or changed since the export. Export again.")
        return certificate


COLUMNS = ("format", "size", "difference", "equal", "return", "latency", "keeps 95%")


def _row(name: str, record: FormatRecord) -> list[TableCell]:
    if record.refused:
        return [
            TableCell("format", name),
            *(TableCell(column, "refused" if column == "size" else NONE) for column in COLUMNS[1:]),
        ]
    own, loop = record.differences.get("own"), record.closed_loop
    flash = [f"flash {size:,} ({processor})" for processor, size in record.flash.items()]
    memory = ", ".join([*flash, *([f"RAM {record.ram:,}"] if record.ram else [])])
    return [
        TableCell("format", name),
        TableCell("size", f"{record.bytes:,} B", memory),
        TableCell("difference", NONE if own is None else f"{own.largest:.1e}"),
        TableCell(
            "equal",
            NONE if own is None else f"{own.agreement:.2%}",
            f"{own.ties} ties" if own is not None and own.ties else "",
        ),
        TableCell("return", NONE if loop is None else f"{loop.mean:.4g}"),
        _latency_cell(record.latency_us),
        TableCell("keeps 95%", NONE if loop is None else loop.keeps_95),
    ]


def _latency_cell(latency: dict[str, float] | None) -> TableCell:
    if latency is None:
        return TableCell("latency", NONE)
    return TableCell("latency", f"{latency['p50']:.3g} µs", f"p99 {latency['p99']:.3g} µs")


def require_plain_env(env: EnvConfig, path: Path) -> EnvConfig:
    """Return the environment in a file as a student observes it; raise UntrustedFileError if it names code."""
    env = env.view_of("student")
    single = list[Wrapper]()
    for wrapper in env.wrappers:
        of_agents = wrappers_of_agents(wrapper.kwargs).values() if wrapper.name == AGENT_VIEWS else [[wrapper]]
        single += [own for listed in of_agents for own in listed]
    names = [*([] if is_published(env.id) else [env.id]), *(wrapper.name for wrapper in single)]
    if code := [name for name in names if ":" in name]:
        raise UntrustedFileError(f"{path}: the environment names code of its own, {code[0]}. Pass --env.")
    for wrapper in single:  # others may write videos, or call a function
        if wrapper.name not in VIEWS or not are_small(wrapper.kwargs):
            raise UntrustedFileError(f"{path}: the environment has the wrapper {wrapper}. Pass --env.")
    worlds = {key: [*(own.values if isinstance(own, Choice) else own)] for key, own in env.worlds.items()}
    # A text may name a file, and a large number fill the memory.
    for key, value in (*env.kwargs.items(), *worlds.items()):
        if not are_small({key: value}) or not re.fullmatch(r"[\w, .\[\]'-]*", str(value)):
            raise UntrustedFileError(f"{path}: the environment has {key}={short_repr(value)}. Pass --env.")
    return env
