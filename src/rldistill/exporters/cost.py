"""Time and memory of exported policies, one decision at a time."""

import math
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from rldistill.core.spec import PolicySpec
from rldistill.exporters.c_source import TYPES, input_names
from rldistill.exporters.runtimes import OnnxRuntime, compile_c, compiler
from rldistill.exporters.texts import render
from rldistill.policies.cost import WARM_UP_CALLS, measure_latency, percentiles

CALLS = 2_000
MAX_SECONDS = 1.0


def onnx_latency(runtime: OnnxRuntime) -> dict[str, float]:
    """Return p50 and p99 of one decision in onnxruntime, in microseconds."""
    parts = runtime.spec.entries.items()
    feed = {key or "obs": np.zeros((1, *part.shape), part.dtype) for key, part in parts}
    if runtime.state_shape is not None:
        feed["state_in"] = np.zeros((1, *runtime.state_shape), np.float32)
    return measure_latency(lambda: runtime.session.run(None, feed), WARM_UP_CALLS, CALLS, MAX_SECONDS)


def c_latency(folder: Path, spec: PolicySpec, flags: tuple[str, ...], macs: int) -> dict[str, float]:
    """Return p50 and p99 of one decision of the compiled source in `folder`, in microseconds."""
    repeat = max(1, 20_000 // max(macs, 1))  # a clock is read once for some microseconds of work
    calls = max(20, min(CALLS, 400_000_000 // max(macs * repeat, 1)))
    names, action_type = input_names(spec.entries), "int64_t" if spec.head.discrete else "float"
    inputs = {names[key]: (TYPES[part.dtype], max(math.prod(part.shape), 1)) for key, part in spec.entries.items()}
    text = render("benchmark.c", inputs=inputs, action_type=action_type, calls=calls, repeat=repeat)
    with tempfile.TemporaryDirectory() as temporary:
        source, binary = Path(temporary) / "benchmark.c", Path(temporary) / "benchmark"
        source.write_text(text, encoding="utf-8")
        for name in ("student.c", "student.h"):  # copied, since other files of the folder may hide the system's headers
            shutil.copy(folder / name, temporary)
        compile_c([Path(temporary) / "student.c", source], binary, flags)
        result = subprocess.run([str(binary)], capture_output=True, text=True, timeout=120, check=True)
    return percentiles([float(line) / 1e3 for line in result.stdout.split()])


def flash_bytes(folder: Path) -> dict[str, int]:
    """Return the size of code and constants by processor, compiled for size: of a Cortex-M4, or of this machine."""
    arm = shutil.which("arm-none-eabi-gcc") is not None and shutil.which("arm-none-eabi-size") is not None
    processor = "cortex-m4" if arm else platform.machine()
    command = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb"] if arm else [str(compiler())]
    measure = "arm-none-eabi-size" if arm else "size"
    if shutil.which(measure) is None:
        return {}
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "student.o"
        command += ["-std=c99", "-Os", "-c", str(folder / "student.c"), "-o", str(output)]
        if subprocess.run(command, check=False, capture_output=True, timeout=300).returncode:
            return {}  # a compiler without the C library
        result = subprocess.run([measure, str(output)], capture_output=True, text=True, check=True, timeout=60)
    text, data = map(int, result.stdout.splitlines()[1].split()[:2])
    return {processor: text + data}
