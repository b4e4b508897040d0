"""Products of a foreign graph with a constant matrix, and the factors and terms of each column after them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from netvlad_deploy.export.foreign.paths import LAYOUT, Paths
from netvlad_deploy.support.arrays import Array, Float64
from netvlad_deploy.support.require import require

PRODUCT_OPS = frozenset(("Conv", "MatMul", "Gemm", "Einsum"))


@dataclass(frozen=True, kw_only=True)
class Affine:
    """The map (x W) * scale + offset from vectors (I,) to (C,).

    Args:
        node: the node of the product.
        weight: W (I,C), in the dtype of the file.
        scale: a factor for each column (C,), None if there is none.
        offset: a term for each column (C,), None if there is none.
    """

    node: Any
    weight: Array
    scale: Float64 | None = None
    offset: Float64 | None = None

    @property
    def columns(self) -> int:
        """Return C."""
        return int(self.weight.shape[1])

    def multiplied(self, factor: Float64) -> "Affine":
        """Return the map, its result multiplied by a factor (C,)."""
        return replace(
            self,
            scale=factor if self.scale is None else self.scale * factor,
            offset=None if self.offset is None else self.offset * factor,
        )

    def plus(self, term: Float64) -> "Affine":
        """Return the map, with a term (C,) added to its result."""
        return replace(self, offset=term if self.offset is None else self.offset + term)


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by name, texts decoded."""
    helper = require("onnx", extra="export").helper
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def product_of(paths: Paths, node: Any) -> Affine | None:
    """Return the product that a node computes of one tensor of data and a constant matrix; None if it is none."""
    data = [index for index, name in enumerate(node.input[:2]) if name in paths.data]
    if node.op_type not in PRODUCT_OPS or len(data) != 1 or len(node.input) < 2:
        return None
    weight = paths.constant(node.input[1 - data[0]])
    if weight is None or weight.dtype.kind != "f":
        return None
    given = attributes(node)
    found: Affine | None
    if node.op_type == "Conv":
        if data[0] or weight.size != weight.shape[0] * weight.shape[1] or given.get("group", 1) != 1:
            return None
        found = Affine(node=node, weight=weight.reshape(weight.shape[:2]).T)
    elif node.op_type == "Einsum":
        matrix = _einsum_matrix(given.get("equation", ""), weight, data[0])
        found = None if matrix is None else Affine(node=node, weight=matrix)
    else:
        matrix = _matrix(weight)
        if matrix is None or (node.op_type == "Gemm" and (data[0] or given.get("transA", 0))):
            return None
        swapped = bool(data[0]) or bool(given.get("transB", 0))
        found = Affine(node=node, weight=matrix.T if swapped else matrix)
        if given.get("alpha", 1.0) != 1.0:
            found = found.multiplied(np.full(found.columns, float(given["alpha"])))
    if found is None or len(node.input) < 3 or not node.input[2] or node.op_type == "Einsum":
        return found
    bias = vector(paths.constant(node.input[2]), found.columns)
    return None if bias is None else found.plus(bias * float(given.get("beta", 1.0)))


def _matrix(weight: Array) -> Array | None:
    """Return a constant whose leading axes are 1 as a matrix."""
    return weight.reshape(weight.shape[-2:]) if weight.ndim >= 2 and weight.size == np.prod(weight.shape[-2:]) else None


def _einsum_matrix(equation: str, weight: Array, data: int) -> Array | None:
    """Return the constant of an Einsum of two operands as (I,C), I being the letter that is summed over."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    if not arrow or len(letters) != 2 or weight.ndim != 2 or len(letters[1 - data]) != 2:
        return None
    kept = [letter in result for letter in letters[1 - data]]
    if kept[0] == kept[1]:
        return None
    return weight.T if kept[0] else weight


def vector(value: Array | None, columns: int) -> Float64 | None:
    """Return a constant of one value, or of one for each column, as (columns,) in float64; None if it is another."""
    if value is None or value.dtype.kind not in "fiu" or value.size not in (1, columns):
        return None
    wide: Float64 = np.broadcast_to(value.astype(np.float64).reshape(-1), (columns,)).copy()
    return wide


def followed(paths: Paths, found: Affine, nodes: Iterable[Any]) -> Affine | None:
    """Return a product with what the nodes after it do to each column; None if they do anything else."""
    for node in nodes:
        if node.op_type in LAYOUT:
            continue
        step = _step(paths, found, node)
        if step is None:
            return None
        found = step
    return found


def _step(paths: Paths, found: Affine, node: Any) -> Affine | None:
    if node.op_type == "BatchNormalization":
        parts = [vector(paths.constant(name), found.columns) for name in node.input[1:5]]
        if any(part is None for part in parts):
            return None
        gamma, beta, mean, variance = (np.asarray(part) for part in parts)
        factor = gamma / np.sqrt(variance + float(attributes(node).get("epsilon", 1e-5)))
        return found.multiplied(factor).plus(beta - mean * factor)
    data = [index for index, name in enumerate(node.input) if name in paths.data]
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(data) != 1:
        return None
    value = vector(paths.constant(node.input[1 - data[0]]), found.columns)
    if value is None or (data[0] and node.op_type in ("Sub", "Div")):
        return None
    if node.op_type in ("Add", "Sub"):
        return found.plus(value if node.op_type == "Add" else -value)
    return found.multiplied(value if node.op_type == "Mul" else 1 / value)
