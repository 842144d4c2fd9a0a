"""Shortens a program of torch.fx that runs the same ops in every step. Its results keep their bits."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten


def shorten(program: GraphModule) -> None:
    """Drops ops that a replay without autograd does not need, and joins small ones.

    The results of a replay are memory of their own, which clipping and optimizers write.
    """
    graph = program.graph
    _drop_copies(graph)
    if not any(_is_unsteady(node.target) for node in graph.nodes if node.op == "call_function"):
        constants = _fold_constants(program)
        graph.eliminate_dead_code()
        _drop_factors_of_one(graph, constants)
        _join_sums(graph)
    graph.eliminate_dead_code()
    program.recompile()


def _drop_copies(graph: Graph) -> None:
    """Drops what autograd adds to the ops: aliases of its own, and copies of sparse gradients, of
    which nothing else holds the rows in a replay.
    """
    made = aten._sparse_coo_tensor_with_dims_and_tensors.default
    for node in list(graph.nodes):
        is_copy = node.target is aten.clone.default and node.args[0].target is made
        if node.target is aten.detach.default or is_copy:
            _replace(node, node.args[0])


def _fold_constants(program: GraphModule) -> dict[Node, Tensor]:
    """Computes once what depends on no tensor and is no result; returns the constants.

    What depends on a tensor that is held, such as a buffer, is no constant: its owner may write it.
    """
    graph = program.graph
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op == "call_function" and all(each in values for each in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    constants = {}
    for node, value in values.items():
        is_read = any(user not in values for user in node.users)
        if isinstance(value, Tensor) and is_read and not _is_result(node):
            program.register_buffer(f"_constant_{node.name}", value)
            with graph.inserting_before(node):
                constant = graph.get_attr(f"_constant_{node.name}")
            node.replace_all_uses_with(constant)
            constants[constant] = value
    return constants


def _is_unsteady(target: Any) -> bool:
    """Returns whether an op may give another result for the same inputs, or writes to them."""
    if target is operator.getitem:
        return False
    return target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags


def _is_result(node: Node) -> bool:
    """Returns whether a node, or a view of it, is a result of the program."""
    return any(user.op == "output" or (_is_view(user) and _is_result(user)) for user in node.users)


def _is_view(node: Node) -> bool:
    target: Any = node.target
    if target is operator.getitem:
        return True
    return any(each.alias_info is not None for each in target._schema.returns)


def _drop_factors_of_one(graph: Graph, constants: dict[Node, Tensor]) -> None:
    """Drops products with ones, which the gradient of the sum of the losses consists of."""
    for node in graph.find_nodes(op="call_function", target=aten.mul.Tensor):
        for factor, other in (node.args, node.args[::-1]):
            is_one = factor in constants and bool((constants[factor] == 1).all())
            if is_one and _are_alike(node, other) and not _is_result(node):
                _replace(node, other)
                break


def _are_alike(node: Node, other: Any) -> bool:
    """Returns whether two nodes are dense tensors of the same shape, strides and dtype."""
    if not isinstance(other, Node):
        return False
    kinds = [
        (value.shape, value.stride(), value.dtype)
        for value in (node.meta.get("val"), other.meta.get("val"))
        if isinstance(value, Tensor) and value.layout == torch.strided
    ]
    return len(kinds) == 2 and kinds[0] == kinds[1]


def _join_sums(graph: Graph) -> None:
    """Makes one op of the sums that are results of the program, such as those of a weight's two
    gradients.
    """
    output = graph.output_node()
    sums = [
        node
        for node in graph.find_nodes(op="call_function", target=aten.add.Tensor)
        if set(node.users) == {output}
        and not node.kwargs
        and all(isinstance(each, Node) for each in node.args)
    ]
    if len(sums) < 2:
        return
    with graph.inserting_before(output):
        joined = graph.call_function(
            aten._foreach_add.List, tuple(map(list, zip(*(node.args for node in sums))))
        )
        for place, node in enumerate(sums):
            _replace(node, graph.call_function(operator.getitem, (joined, place)))


def _replace(node: Node, other: Any) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)
