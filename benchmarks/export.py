"""Time of one decision of an exported mlp: PyTorch, onnxruntime on our file and on a bare graph, and C.

    python benchmarks/export.py

The bare graph is the same network without normalization, action and metadata: the limit of onnxruntime.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.exporters.config import ExportConfig, Format
from rldistill.exporters.export import export_policy
from rldistill.exporters.measures import CALLS, MAX_SECONDS, c_latency
from rldistill.policies.cost import WARM_UP_CALLS, measure_latency
from rldistill.students import Mlp
from rldistill.teachers.onnx import session

ENV = EnvConfig("LunarLander-v3")
FORMATS: tuple[Format, ...] = ("onnx", "c")
REPEATS = 5


def main() -> None:
    """Print p50 in microseconds and the ratio to the bare graph, the best of several rounds."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    policy = Mlp((64, 64)).build(spec_from_env(ENV)).eval()
    policy.standardize(torch.full_like(policy.obs_mean, 0.1), torch.full_like(policy.obs_std, 0.7))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "export"
        export_policy(policy, ENV, folder, ExportConfig(FORMATS, states=100, episodes=2), progress=False)
        ours, bare = (
            session((folder / "student.onnx").read_bytes()),
            session(bare_graph(policy.body[1:], policy.output)),
        )
        obs = np.zeros((1, 8), np.float32)
        times = {
            "torch": lambda: median_us(lambda: policy(torch.from_numpy(obs))),
            "onnx, bare graph": lambda: median_us(lambda: bare.run(None, {"obs": obs})),
            "onnx": lambda: median_us(lambda: ours.run(None, {"obs": obs})),
            "c -O2": lambda: c_latency(folder, policy.spec, ("-O2",), 5_000)["p50"],
            "c -O3 -march=native": lambda: c_latency(folder, policy.spec, ("-O3", "-march=native"), 5_000)["p50"],
        }
        with torch.no_grad():
            best = {name: min(float(measure()) for _ in range(REPEATS)) for name, measure in times.items()}
    for label, time in best.items():
        print(f"{label:22}{time:8.2f} µs{time / best['onnx, bare graph']:8.2f} times the bare graph")


def median_us(call: Callable[[], object]) -> float:
    """Return the median time of a call in microseconds."""
    return measure_latency(call, WARM_UP_CALLS, CALLS, MAX_SECONDS)["p50"]


def bare_graph(body: nn.Sequential, output: nn.Module) -> bytes:
    """Return the dense layers of an mlp as a graph of nothing else."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "obs"
    for number, layer in enumerate([*body, output]):
        if isinstance(layer, nn.Linear):
            for name, value in (("w", layer.weight), ("b", layer.bias)):
                weights.append(numpy_helper.from_array(value.detach().numpy(), f"{name}{number}"))
            inputs = [last, f"w{number}", f"b{number}"]
            nodes.append(helper.make_node("Gemm", inputs, [f"x{number}"], transB=1))
        else:
            nodes.append(helper.make_node("Relu", [last], [f"x{number}"]))
        last = f"x{number}"
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("obs", 8), (last, 4))
    ]
    graph = helper.make_graph(nodes, "bare", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content


if __name__ == "__main__":
    main()
