"""Settings of an export."""

from typing import Literal, get_args

from rldistill.core.fields import Positive, validated_dataclass

Format = Literal["onnx", "int8", "c", "html", "sb3", "agents"]
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_FORMATS: tuple[Format, ...] = ("onnx", "c")
FLOAT_FORMATS: tuple[Format, ...] = ("onnx", "c", "html", "sb3", "agents")


@validated_dataclass
class ExportConfig:
    """Formats of an export, and the size of its certificate.

    Attributes:
        formats: `onnx`, `int8` (quantized ONNX), `c` (C99), `html` (a page with JavaScript), `sb3` (a zip of
            Stable-Baselines3) and `agents` (an ONNX file for each network of a team); by default `onnx`, `c` where it
            applies, and `agents` of a team.
        states: Observations of the student's own play, and as many of the dataset, that are compared.
        episodes: Full episodes that the original and each exported file play; at least 59 are needed to show that a
            file keeps 95%.
        students: Students of the run that are exported; by default all.
    """

    formats: tuple[Format, ...] = ()
    states: Positive = 10_000
    episodes: Positive = 60
    students: tuple[str, ...] = ()
