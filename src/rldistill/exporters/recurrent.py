"""Translation of recurrent cells into operations."""

from torch import nn

from rldistill.exporters.program import Node, add, array, concat, flat, linear, multiply, reshape, take, unary


def gru_cell(cell: nn.GRUCell, x: Node, state: Node) -> Node:
    """Return the next state: r, z = sigmoid(..), n = tanh(W x + b + r (U h + c)), h' = n + z (h - n)."""
    size = cell.hidden_size
    inner = linear(x, array(cell.weight_ih), array(cell.bias_ih))
    outer = linear(state, array(cell.weight_hh), array(cell.bias_hh))
    gates = unary(add(take(inner, 0, 2 * size), take(outer, 0, 2 * size)), "sigmoid")
    reset, update = take(gates, 0, size), take(gates, size, 2 * size)
    new = unary(add(take(inner, 2 * size, 3 * size), multiply(reset, take(outer, 2 * size, 3 * size))), "tanh")
    return add(new, multiply(update, add(state, unary(new, "negate"))))


def lstm_cells(layers: nn.LSTM, x: Node, state: Node) -> tuple[Node, Node]:
    """Return the output and the next state `[2, layers, hidden]` of one step."""
    size, flat_state = layers.hidden_size, flat(state)
    outputs, cells = [], []
    for number in range(layers.num_layers):
        weights = {
            name: array(getattr(layers, f"{name}_l{number}"))
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        start = number * size
        before = take(flat_state, start, start + size)
        cell = take(flat_state, layers.num_layers * size + start, layers.num_layers * size + start + size)
        sums = add(
            linear(x, weights["weight_ih"], weights["bias_ih"]),
            linear(before, weights["weight_hh"], weights["bias_hh"]),
        )
        gates = unary(sums, "sigmoid")
        new = unary(take(sums, 2 * size, 3 * size), "tanh")
        cell = add(multiply(take(gates, size, 2 * size), cell), multiply(take(gates, 0, size), new))
        x = multiply(take(gates, 3 * size, 4 * size), unary(cell, "tanh"))
        outputs.append(x)
        cells.append(cell)
    return x, reshape(concat([*outputs, *cells]), state.shape)
