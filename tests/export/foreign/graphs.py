"""ONNX files as other people write a NetVLAD: a loop over the clusters, a broadcast, and TensorFlow's operators.

Each layer is written here by itself, and shares no code with the package.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional


class Looped(nn.Module):
    """Feature maps (B,D,h,w) or local descriptors (B,N,D): one cluster after another, as most projects write it."""

    def __init__(self, clusters: int, width: int, *, bias: bool = False, pre_l2: bool = True, rank: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, clusters, 1, bias=bias)
        self.centroids = nn.Parameter(torch.randn(clusters, width))
        self.pre_l2, self.rank = pre_l2, rank
        self.conv.weight.data.copy_(3 * self.centroids[:, :, None, None])

    @property
    def weights(self) -> Tensor:
        """Return the matrix of the logits (D,K)."""
        return self.conv.weight[:, :, 0, 0].T

    @property
    def centroids_by_cluster(self) -> Tensor:
        """Return the centroids (K,D) that are subtracted."""
        return self.centroids

    def forward(self, x: Tensor) -> Tensor:
        if self.rank == 3:
            x = x.transpose(1, 2).unsqueeze(-1)
        batch, width = x.shape[:2]
        if self.pre_l2:
            x = functional.normalize(x, p=2, dim=1)
        assignment = functional.softmax(self.conv(x).view(batch, self.conv.out_channels, -1), dim=1)
        flat = x.reshape(batch, width, -1)
        vlad = torch.zeros([batch, self.conv.out_channels, width], dtype=x.dtype)
        for cluster in range(self.conv.out_channels):
            residual = flat.unsqueeze(0).permute(1, 0, 2, 3) - self.centroids[cluster : cluster + 1, :].expand(
                flat.size(-1), -1, -1
            ).permute(1, 2, 0).unsqueeze(0)
            residual = residual * assignment[:, cluster : cluster + 1, :].unsqueeze(2)
            vlad[:, cluster : cluster + 1, :] = residual.sum(dim=-1)
        vlad = functional.normalize(vlad, p=2, dim=2)
        return functional.normalize(vlad.reshape(batch, -1), p=2, dim=1)


class Broadcast(nn.Module):
    """Local descriptors (B,N,D) at once; with BatchNorm, ghosts, centres that are added, and whitening, if asked."""

    def __init__(
        self,
        clusters: int,
        width: int,
        *,
        ghosts: int = 0,
        batch_norm: bool = True,
        plus: bool = False,
        last: bool = True,
        size: int = 0,
        l2: bool = True,
        order: str = "BDKN",
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, clusters + ghosts))
        self.norm = nn.BatchNorm1d(clusters + ghosts) if batch_norm else None
        self.centres = nn.Parameter(
            torch.randn(width, clusters) if order == "BDKN" else torch.randn(1, clusters, width)
        )
        self.whitening = nn.Linear(clusters * width, size) if size else None
        self.clusters, self.plus, self.last, self.l2, self.order = clusters, plus, last, l2, order
        if self.norm is not None:
            self.norm.running_mean = torch.randn(clusters + ghosts)
            self.norm.running_var = torch.rand(clusters + ghosts) + 0.5
            self.norm.weight.data.uniform_(0.5, 1.5)

    @property
    def weights(self) -> Tensor:
        """Return the matrix of the logits (D,K+G)."""
        return self.weight

    @property
    def centroids_by_cluster(self) -> Tensor:
        """Return the centroids (K,D) that are subtracted."""
        centres = self.centres.T if self.order == "BDKN" else self.centres[0]
        return -centres if self.plus else centres

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        logits = x @ self.weight
        if self.norm is not None:
            logits = self.norm(logits.transpose(1, 2)).transpose(1, 2)
        a = logits.softmax(-1)[..., : self.clusters]
        centres = -self.centres if self.plus else self.centres
        if self.order == "BDKN":
            residual = x.transpose(1, 2).unsqueeze(2) - centres[None, :, :, None]
            residual = (residual * a.transpose(1, 2).unsqueeze(1)).sum(-1)  # (B,D,K)
            residual = functional.normalize(residual, dim=1)
            vlad = residual if self.last else residual.transpose(1, 2)
        else:
            residual = x.unsqueeze(1) - centres[:, :, None, :]  # (B,K,N,D)
            residual = (residual * a.transpose(1, 2).unsqueeze(-1)).sum(2)
            residual = functional.normalize(residual, dim=2)
            vlad = residual.transpose(1, 2) if self.last else residual
        vlad = functional.normalize(vlad.reshape(batch, -1), dim=1)
        if self.whitening is not None:
            vlad = self.whitening(vlad)
            vlad = functional.normalize(vlad, dim=1) if self.l2 else vlad
        return vlad


def export_by_torch(
    module: nn.Module, path: Path, example: Tensor, *, dynamo: bool = False, dynamic: bool = True, opset: int = 17
) -> Path:
    """Write a module as torch does it, axis 0 and the positions dynamic if asked for."""
    axes = {0: "batch", **({1: "n"} if example.ndim == 3 else {2: "h", 3: "w"})}
    settings: dict[str, Any] = {"dynamic_axes": {"x": axes}} if dynamic else {}
    if dynamo:
        settings = {"dynamic_shapes": (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)} if dynamic else {}
        settings["external_data"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(torch.onnx.export, "__wrapped__", torch.onnx.export)(  # as it is: traced for each file
            module.eval(), (example,), str(path), input_names=["x"], output_names=["vlad"], opset_version=opset,
            dynamo=dynamo, verbose=False, **settings,
        )  # fmt: skip
    return path


def l2_nodes(name: str, axis: str, output: str) -> list[Any]:
    """Return the nodes of TensorFlow's l2_normalize along a constant axis."""
    steps = (
        ("Mul", [name, name], "sq"),
        ("ReduceSum", [f"{output}_sq", axis], "sum"),
        ("Max", [f"{output}_sum", "eps"], "max"),
        ("Sqrt", [f"{output}_max"], "norm"),
        ("Reciprocal", [f"{output}_norm"], "inv"),
    )
    nodes = [helper.make_node(kind, inputs, [f"{output}_{end}"]) for kind, inputs, end in steps]
    return [*nodes, helper.make_node("Mul", [name, f"{output}_inv"], [output])]


def tensorflow_graph(path: Path, clusters: int, width: int, seed: int, *, opset: int = 13) -> Path:
    """Write a head as tf2onnx writes one: NHWC maps, l2_normalize by sums, softmax by its parts, x plus a centre."""
    random = np.random.default_rng(seed)
    weights = {
        "w": random.standard_normal((width, clusters)).astype(np.float32),
        "b": random.standard_normal(clusters).astype(np.float32),
        "c": random.standard_normal((1, 1, 1, width, clusters)).astype(np.float32),
        "eps": np.array(1e-12, np.float32),
        "flat": np.array([-1, width * clusters]),
        **{f"axis{axis}": np.array([axis]) for axis in (1, 3, 4, -1)},
        "positions": np.array([1, 2]),
    }
    nodes = [
        *l2_nodes("x", "axis-1", "n"),
        helper.make_node("MatMul", ["n", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["logits"]),
        helper.make_node("ReduceMax", ["logits"], ["peak"], axes=[-1], keepdims=1),
        helper.make_node("Sub", ["logits", "peak"], ["less"]),
        helper.make_node("Exp", ["less"], ["exp"], name="softmax/Exp"),
        helper.make_node("ReduceSum", ["exp", "axis-1"], ["total"], keepdims=1),
        helper.make_node("Div", ["exp", "total"], ["a"]),
        helper.make_node("Unsqueeze", ["a", "axis3"], ["a5"]),  # (B,h,w,1,K)
        helper.make_node("Unsqueeze", ["n", "axis4"], ["n5"]),  # (B,h,w,D,1)
        helper.make_node("Add", ["n5", "c"], ["v5"]),
        helper.make_node("Mul", ["a5", "v5"], ["av"]),
        helper.make_node("ReduceSum", ["av", "positions"], ["v"], keepdims=0),  # (B,D,K)
        *l2_nodes("v", "axis1", "vi"),
        helper.make_node("Reshape", ["vi", "flat"], ["f"]),
        *l2_nodes("f", "axis1", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "tf",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["unk__1", "unk__2", "unk__3", width])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["unk__1", width * clusters])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return saved(model, path)


def loaded(path: Path) -> Any:
    """Return a model, to be changed."""
    return onnx.load_from_string(path.read_bytes())


def saved(model: Any, path: Path) -> Path:
    """Write a model."""
    path.write_bytes(model.SerializeToString())
    return path
