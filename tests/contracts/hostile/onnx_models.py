"""Hostile ONNX graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .sb3_zips import alone, pickled
from .watch import Case, Make


def onnx_file(change: Callable[[Any], None]) -> Make:
    """An ONNX graph of one matrix product, after `change`."""

    def make(folder: Path, canary: Path) -> Path:
        onnx = pytest.importorskip("onnx", reason="needs the extra export")
        helper, floats = onnx.helper, onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["obs", "w"], ["q"])],
            "policy",
            [helper.make_tensor_value_info("obs", floats, ["batch", 4])],
            [helper.make_tensor_value_info("q", floats, ["batch", 2])],
            [helper.make_tensor("w", floats, (4, 2), [0.5] * 8)],
        )
        model = helper.make_model(graph)
        change(model)
        (folder / "policy.onnx").write_bytes(model.SerializeToString())
        return folder / "policy.onnx"

    return make


def onnx_outside(location: str) -> Make:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return onnx_file(change)


def onnx_domain(model: Any) -> None:
    model.graph.node[0].domain = "evil.python"


def onnx_huge(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]


def onnx_endless(model: Any) -> None:
    model.graph.node[0].op_type = "Loop"


def onnx_exploding(model: Any) -> None:
    import onnx

    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, (2,), [1 << 16, 1 << 14])
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["shape"], ["big"]))


def onnx_function(model: Any) -> None:
    import onnx

    tensor = onnx.helper.make_tensor("e", onnx.TensorProto.FLOAT, (1,), [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/SECRET"
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(onnx.helper.make_function("local", "f", [], ["y"], [node], model.opset_import))


def _external(tensor: Any) -> Any:
    tensor.ClearField("float_data")
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "SECRET"
    return tensor


def _tensor(name: str = "e", dims: tuple[int, ...] = (1,)) -> Any:
    import onnx

    return onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, dims, [1.0] * max(1, dims[0]))


def onnx_sparse(where: str) -> Make:
    def change(model: Any) -> None:
        import onnx

        indices = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, (1,), [0])
        sparse = onnx.helper.make_sparse_tensor(_external(_tensor()), indices, [4])
        if where == "initializer":
            model.graph.sparse_initializer.append(sparse)
        else:
            model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["s"], sparse_value=sparse))

    return onnx_file(change)


def onnx_training(model: Any) -> None:
    model.training_info.add().initialization.initializer.append(_external(_tensor()))


def onnx_nodes(*nodes: tuple[Any, ...], **constants: list[int]) -> Make:
    """Nodes `(operator, inputs, attributes)` before the product; each returns its own name in lower case."""

    def change(model: Any) -> None:
        import onnx

        for name, values in constants.items():
            kind = onnx.TensorProto.INT64
            model.graph.initializer.append(onnx.helper.make_tensor(name, kind, (len(values),), values))
        for number, (operator, inputs, attributes) in enumerate(nodes):
            node = onnx.helper.make_node(operator, inputs, [operator.lower()], **attributes)
            model.graph.node.insert(number, node)

    return onnx_file(change)


def onnx_functions(kind: str) -> Make:
    """Functions that call each other: a hidden loop, recursion, or 10^12 calls."""

    def change(model: Any) -> None:
        import onnx

        helper = onnx.helper
        model.opset_import.append(helper.make_opsetid("local", 1))

        def add(name: str, nodes: list[Any]) -> None:
            function = helper.make_function("local", name, ["x"], ["y"], nodes, model.opset_import)
            model.functions.append(function)

        if kind == "loop":
            body = helper.make_graph([helper.make_node("Loop", ["", ""], ["z"])], "b", [], [])
            nodes = [helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)]
            add("f", nodes)
        elif kind == "recursion":
            add("f", [helper.make_node("g", ["x"], ["y"], domain="local")])
            add("g", [helper.make_node("f", ["x"], ["y"], domain="local")])
        else:
            add("f0", [helper.make_node("Relu", ["x"], ["y"])])
            for level in range(1, 13):
                names = ["x", *(f"t{number}" for number in range(9)), "y"]
                calls = [
                    helper.make_node(f"f{level - 1}", [a], [b], domain="local") for a, b in itertools.pairwise(names)
                ]
                add("f" if level == 12 else f"f{level}", calls)
        model.graph.node.insert(0, helper.make_node("f", ["obs"], ["unused"], domain="local"))

    return onnx_file(change)


def onnx_chain(model: Any) -> None:
    """A thousand products of large matrices that onnxruntime would compute when it loads the file."""
    import onnx

    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, (2,), [4_000, 4_000])
    model.graph.initializer.append(shape)
    nodes = [onnx.helper.make_node("ConstantOfShape", ["shape"], ["m0"])]
    nodes += [onnx.helper.make_node("MatMul", [f"m{n}", "m0"], [f"m{n + 1}"]) for n in range(1_000)]
    for number, node in enumerate(nodes):
        model.graph.node.insert(number, node)


def onnx_many(model: Any) -> None:
    import onnx

    model.graph.node.extend(onnx.helper.make_node("Relu", ["q"], [f"r{n}"]) for n in range(60_000))


def onnx_lies(model: Any) -> None:
    """Shapes in the file that hide the size of a value."""
    import onnx

    onnx_exploding(model)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("big", onnx.TensorProto.FLOAT, [1]))


CAST = ("Cast", ["obs"], {"to": 7})
MAKES: dict[str, Make] = {
    "onnx: a sparse initializer elsewhere": onnx_sparse("initializer"),
    "onnx: a sparse constant elsewhere": onnx_sparse("constant"),
    "onnx: tensors of a training elsewhere": onnx_file(onnx_training),
    "onnx: a loop in a branch of a function": onnx_functions("loop"),
    "onnx: functions that call each other": onnx_functions("recursion"),
    "onnx: functions of functions": onnx_functions("bomb"),
    "onnx: products of constants": onnx_file(onnx_chain),
    "onnx: thousands of operators": onnx_file(onnx_many),
    "onnx: lies about shapes": onnx_file(onnx_lies),
    "onnx: a scan": onnx_nodes(("Scan", ["obs"], {"num_scan_inputs": 1})),
    "onnx: a shape from the observation": onnx_nodes(
        CAST, ("Flatten", ["cast"], {}), ("Squeeze", ["cast"], {}), ("ConstantOfShape", ["squeeze"], {})
    ),
    "onnx: an expansion": onnx_nodes(("Expand", ["obs", "to"], {}), to=[1 << 20, 64, 4]),
    "onnx: tiles": onnx_nodes(("Tile", ["obs", "times"], {}), times=[1 << 16, 1 << 10]),
    "onnx: padding": onnx_nodes(("Pad", ["obs", "pads"], {}), pads=[0, 1 << 30, 0, 0]),
    "onnx: a range": onnx_nodes(("Range", ["zero", "end", "one"], {}), zero=[0], end=[1 << 40], one=[1]),
    "onnx: a large pooling": onnx_nodes(
        ("Reshape", ["obs", "shape"], {}),
        ("Expand", ["reshape", "to"], {}),
        ("MaxPool", ["expand"], {"kernel_shape": [1_000, 1_000], "pads": [999] * 4}),
        shape=[-1, 1, 2, 2],
        to=[64, 1, 2, 2],
    ),
    "onnx: a search": onnx_nodes(("BeamSearch", ["obs"], {"domain": "com.microsoft"})),
    "onnx: where no limit is known": onnx_nodes(("CumSum", ["obs", "axis"], {}), axis=[1]),
    "onnx: tiles of what is not zero": onnx_nodes(
        ("NonZero", ["obs"], {}), ("Tile", ["nonzero", "times"], {}), times=[1 << 20, 1 << 10]
    ),
    "onnx: endless": onnx_file(onnx_endless),
    "onnx: exploding": onnx_file(onnx_exploding),
    "onnx: a function with tensors elsewhere": onnx_file(onnx_function),
    "onnx: tensors elsewhere": onnx_outside("/etc/SECRET"),
    "onnx: tensors above": onnx_outside("../../../../etc/SECRET"),
    "onnx: an operator of one's own": onnx_file(onnx_domain),
    "onnx: a lying shape": onnx_file(onnx_huge),
    "onnx: a pickle": alone("policy.onnx", pickled),
}
ONNX_CASES = {name: Case(make) for name, make in MAKES.items()}
