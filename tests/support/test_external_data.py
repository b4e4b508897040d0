"""The files that a graph may open: names read from its bytes are those that onnx reads, and others are refused."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import FileReference, OnnxArtifact, load_artifact, stage_artifact
from netvlad_deploy.errors import ArtifactError
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.support.external_data import EXTERNAL_DATA_PROPERTY, read_names
from netvlad_deploy.support.files import stage_files
from tests.modules import RANGE

onnx = pytest.importorskip("onnx")
pytestmark = [pytest.mark.export, pytest.mark.ort]

WEIGHTS = np.arange(16, dtype=np.float32)


def tensor(name: str, location: str | None) -> Any:
    """Return a constant, inside the graph or in a file."""
    if location is None:
        return onnx.numpy_helper.from_array(WEIGHTS, name)
    proto = onnx.TensorProto(name=name, data_type=1, dims=[16], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(WEIGHTS.nbytes))):
        proto.external_data.add(key=key, value=value)
    return proto


def model(location: str | None, listed: FileReference | None = None) -> Any:
    """Return a graph that adds constants to its features."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["features", "weights"], ["descriptor"])],
        "g",
        [onnx.helper.make_tensor_value_info("features", 1, [1, 1, 16])],
        [onnx.helper.make_tensor_value_info("descriptor", 1, [1, 1, 16])],
        [tensor("weights", location)],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    if listed is not None:
        value = json.dumps({"name": listed.name, "sha256": listed.sha256}, sort_keys=True)
        made.metadata_props.add(key=EXTERNAL_DATA_PROPERTY, value=value)
    return made


def reference(path: Path) -> FileReference:
    return FileReference(name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def write(folder: Path, content: bytes, listed: FileReference | None) -> OnnxArtifact:
    """Write an artifact of these bytes, with a sidecar that lists this external data."""
    from netvlad_deploy.spec.layer import NetVLADSpec

    artifact = OnnxArtifact(
        path=folder / "m.onnx",
        spec=NetVLADSpec(num_clusters=1, feature_size=16),
        precision="fp32",
        inputs=("features",),
        outputs=("descriptor",),
        dtypes={"features": "float32", "descriptor": "float32"},
        range=RANGE,
        origin="a test",
        parent=None,
        reference=FileReference(name="m.reference.npz", sha256=hashlib.sha256(b"").hexdigest()),
        preprocessing="none",
        opset=18,
        external_data=listed,
    )
    with stage_files(force=True) as staging:
        return stage_artifact(staging, artifact, content)


@pytest.fixture
def listed(tmp_path: Path) -> FileReference:
    (tmp_path / "m.onnx.data").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "other.data").write_bytes((-WEIGHTS).tobytes())
    return reference(tmp_path / "m.onnx.data")


def in_attribute(made: Any) -> None:
    attribute = onnx.helper.make_attribute("value", tensor("c", "other.data"))
    made.graph.node.append(onnx.NodeProto(op_type="Constant", output=["c"], attribute=[attribute]))


def in_list(made: Any) -> None:
    made.graph.node[0].attribute.add(name="l", type=9).tensors.append(tensor("c", "other.data"))


def in_subgraph(made: Any) -> None:
    inner = onnx.GraphProto(name="inner", initializer=[tensor("c", "other.data")])
    made.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def in_function(made: Any) -> None:
    function = onnx.FunctionProto(name="f")
    function.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor("c", "other.data")))
    made.functions.append(function)


def in_sparse(made: Any) -> None:
    made.graph.sparse_initializer.add(values=tensor("c", "other.data"), dims=[16])


def in_training(made: Any) -> None:
    made.training_info.add().algorithm.initializer.append(tensor("c", "other.data"))


def in_initializer(made: Any) -> None:
    made.graph.initializer.append(tensor("c", "other.data"))


PLACES = (in_attribute, in_list, in_subgraph, in_function, in_sparse, in_training, in_initializer)


@pytest.mark.parametrize("place", PLACES)
def test_another_file_is_found_wherever_a_tensor_can_stand(
    tmp_path: Path, listed: FileReference, place: Callable[[Any], None]
) -> None:
    made = model("m.onnx.data", listed)
    assert read_names(made.SerializeToString())[0] == {"m.onnx.data"}
    place(made)
    content = made.SerializeToString()
    assert read_names(content)[0] == {"m.onnx.data", "other.data"}
    write(tmp_path, content, listed)
    with pytest.raises(ArtifactError, match=r"it names the external data other\.data"):
        load_artifact(tmp_path / "m.onnx")


def test_external_data_that_the_sidecar_lists_runs(tmp_path: Path, listed: FileReference) -> None:
    artifact = write(tmp_path, model("m.onnx.data", listed).SerializeToString(), listed)
    x = np.ones((1, 1, 16), dtype=np.float32)
    for backend in ("onnxruntime", "strict"):
        with open_runner(artifact.path, backend=backend) as runner:
            assert np.array_equal(runner.run({"features": x})["descriptor"], x + WEIGHTS)


@pytest.mark.parametrize(
    "location", ["other.data", "../m.onnx.data", "/etc/passwd", "./m.onnx.data", "*/_ORT_MEM_ADDR_/*", ""]
)
@pytest.mark.parametrize("lists", [True, False])
def test_a_graph_opens_nothing_that_its_sidecar_does_not_list(
    tmp_path: Path, listed: FileReference, location: str, lists: bool
) -> None:
    said = listed if lists else None
    artifact = write(tmp_path, model(location, said).SerializeToString(), said)
    for backend in ("onnxruntime", "strict"):
        with pytest.raises(ArtifactError, match="does not fit its sidecar"):
            open_runner(artifact, backend=backend)


def test_the_hash_of_a_graph_is_one_of_its_weights_too(tmp_path: Path, listed: FileReference) -> None:
    """A sidecar can be rewritten with other weights; the graph, whose hash is expected, says which are its own."""
    content = model("m.onnx.data", listed).SerializeToString()
    pinned = write(tmp_path, content, listed).sha256
    (tmp_path / "m.onnx.data").write_bytes((-WEIGHTS).tobytes())
    with pytest.raises(ArtifactError, match=r"m\.onnx\.data has SHA-256 .* it is stale"):
        load_artifact(tmp_path / "m.onnx", expect_sha256=pinned)
    assert write(tmp_path, content, reference(tmp_path / "m.onnx.data")).sha256 == pinned
    with pytest.raises(ArtifactError, match="its external data is of another name or content"):
        load_artifact(tmp_path / "m.onnx", expect_sha256=pinned)


def test_external_data_is_no_link_and_is_there(tmp_path: Path, listed: FileReference) -> None:
    artifact = write(tmp_path, model("m.onnx.data", listed).SerializeToString(), listed)
    (tmp_path / "m.onnx.data").rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"m\.onnx\.data is missing"):
        open_runner(artifact)
    (tmp_path / "m.onnx.data").symlink_to(tmp_path / "elsewhere")
    for opened in (lambda: load_artifact(artifact.path), lambda: open_runner(artifact)):
        with pytest.raises(ArtifactError, match=r"m\.onnx\.data is a link"):
            opened()


@pytest.mark.rtx
def test_a_build_opens_the_copy_alone(tmp_path: Path, listed: FileReference) -> None:
    from netvlad_deploy.spec.build_options import BuildOptions
    from netvlad_deploy.spec.profiles import Profile
    from netvlad_deploy.tensorrt.engine import build_engine

    (tmp_path / "m.reference.npz").write_bytes(b"")
    options = BuildOptions(flavor="tensorrt-rtx", profiles=(Profile.parse("1x1"),))
    artifact = write(tmp_path, model("m.onnx.data", listed).SerializeToString(), listed)
    built = build_engine(artifact, tmp_path / "m.engine", options)
    assert built.parent == FileReference(name="m.onnx", sha256=artifact.sha256)
    before = built.path.read_bytes()
    other = write(tmp_path, model("other.data").SerializeToString(), None)
    for given, message in (
        (other, r"names the external data other\.data"),
        (replace(artifact, sha256=other.sha256), "does not fit its sidecar"),
        (replace(artifact, sha256="0" * 64), "its sidecar says"),
    ):
        with pytest.raises(ArtifactError, match=message):
            build_engine(given, tmp_path / "m.engine", options, force=True)
    assert built.path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"\x0b\x0c",  # a group
        b"\x3a\x05\x00",  # a length beyond the end
        b"\xff" * 12,  # a number without end
        b"\x88",  # a number that is cut off
        b"\xba\x80\x80\x80\x80\x80\x01\x00",  # a tag that protobuf would cut
    ],
)
def test_bytes_that_are_no_protobuf_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"wire type|beyond|cut off|a tag is"):
        read_names(content)


def test_messages_do_not_nest_without_end() -> None:
    content = b""
    for _ in range(60):  # a graph in an attribute of a node of a graph
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + varint(len(content)) + content
    with pytest.raises(ValueError, match="100 deep"):
        read_names(b"\x3a" + varint(len(content)) + content)


def varint(value: int) -> bytes:
    parts = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])


def test_names_are_those_that_onnx_reads(exported: OnnxArtifact) -> None:
    content = exported.path.read_bytes()
    properties: Mapping[str, str] = {one.key: one.value for one in onnx.load(exported.path).metadata_props}
    assert read_names(content) == (set(), properties)
