"""An ONNX artifact whose file is the JSON that the double of the parser reads: no torch, no onnx."""

import hashlib
import json
from pathlib import Path

from netvlad_deploy.artifact import FileReference, OnnxArtifact, stage_artifact
from netvlad_deploy.spec.graph_options import FeatureRange
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, NetVLADSpec
from netvlad_deploy.support.files import stage_files

GRAPH = {"inputs": [FEATURES, MASK]}
DOC_STRING = 6
"""Number of the field of an ONNX model that holds the JSON, so that it is protobuf."""


def graph_content(*inputs: str) -> bytes:
    """Return the bytes of a graph's file with these inputs, or with the usual ones."""
    text = json.dumps({"inputs": inputs} if inputs else GRAPH).encode()
    assert len(text) < 128
    return bytes([DOC_STRING << 3 | 2, len(text)]) + text


def write_graph(folder: Path, *, precision: str = "fp32") -> OnnxArtifact:
    """Write `m.onnx` with its sidecar and its reference file: K=2, D=3, masked."""
    (folder / "m.reference.npz").write_bytes(b"parameters")
    artifact = OnnxArtifact(
        path=folder / "m.onnx",
        spec=NetVLADSpec(num_clusters=2, feature_size=3),
        precision=precision,
        inputs=(FEATURES, MASK),
        outputs=(DESCRIPTOR,),
        dtypes={FEATURES: "float32", MASK: "bool", DESCRIPTOR: "float32"},
        range=FeatureRange(norm=1, largest=None, logit_slope=2, logit_step=2.0**-22),
        warnings=("of the audit",),
        origin="best.pth",
        parent=None,
        reference=FileReference(name="m.reference.npz", sha256=hashlib.sha256(b"parameters").hexdigest()),
        preprocessing="none",
        versions={"onnx": "1.19.0"},
        opset=18,
    )
    with stage_files(force=False) as staging:
        return stage_artifact(staging, artifact, graph_content())
