"""The configuration of every kind of artifact, parsed by Triton's own protobuf schema, which is in its client."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.artifact import AnyArtifact, OnnxArtifact
from netvlad_deploy.errors import UsageError
from netvlad_deploy.serving.config import config_text, serving_of
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.images import ImageInput, ImageProfile, Resize
from netvlad_deploy.spec.layer import HeadsSpec
from netvlad_deploy.spec.profiles import Profile
from tests.serving.triton import Client
from tests.test_artifact import SPEC, engine_artifact, onnx_artifact

HEAD = onnx_artifact(Path("head.onnx"))
MASKED = replace(HEAD, inputs=("features", "mask"))
PIPELINE = replace(
    HEAD,
    inputs=("images",),
    dtypes={"images": "uint8", "descriptor": "float32"},
    images=ImageInput(resize=Resize(size=(48, 64))),
)
FREE = replace(PIPELINE, images=ImageInput())
RTX = engine_artifact(Path("head.engine"))
ENGINE = replace(
    RTX,
    versions={"tensorrt": "10.3"},
    options=BuildOptions(profiles=(Profile.parse("1x100,4x100,16x100"), Profile.parse("1x1,1x300,2x900"))),
)
IMAGE_ENGINE = replace(
    ENGINE,
    inputs=("images",),
    dtypes=PIPELINE.dtypes,
    images=PIPELINE.images,
    options=BuildOptions(profiles=(ImageProfile.parse("2x48x64,4x48x64,4x48x64"),)),
)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("artifact", "options", "backend", "inputs", "instances"),
    [
        (HEAD, {}, "onnxruntime", {"features": ("TYPE_FP32", [-1, 16])}, {"count": 1, "kind": "KIND_CPU"}),
        (
            MASKED,
            {"device": "gpu", "instances": 3},
            "onnxruntime",
            {"features": ("TYPE_FP32", [-1, 16]), "mask": ("TYPE_BOOL", [-1])},
            {"count": 3, "kind": "KIND_GPU"},
        ),
        (
            PIPELINE,
            {},
            "python",
            {"image": ("TYPE_STRING", [1]), "pixels": ("TYPE_UINT8", [-1, -1, 3])},
            {"count": 1, "kind": "KIND_CPU"},
        ),
        (
            PIPELINE,
            {"backend": "onnxruntime"},
            "onnxruntime",
            {"images": ("TYPE_UINT8", [48, 64, 3])},
            {"count": 1, "kind": "KIND_CPU"},
        ),
        (
            FREE,
            {"backend": "onnxruntime"},
            "onnxruntime",
            {"images": ("TYPE_UINT8", [-1, -1, 3])},
            {"count": 1, "kind": "KIND_CPU"},
        ),
        (
            ENGINE,
            {},
            "tensorrt",
            {"features": ("TYPE_FP32", [-1, 16]), "mask": ("TYPE_BOOL", [-1])},
            {"count": 1, "kind": "KIND_GPU", "profile": ["0", "1"]},
        ),
        (
            IMAGE_ENGINE,
            {},
            "python",
            {"image": ("TYPE_STRING", [1]), "pixels": ("TYPE_UINT8", [-1, -1, 3])},
            {"count": 1, "kind": "KIND_GPU", "gpus": [0]},
        ),
    ],
    ids=["head", "masked", "pipeline", "stretched", "free", "engine", "image engine"],
)
def test_the_configuration_is_one_of_triton_s(
    client: Client,
    artifact: AnyArtifact,
    options: dict[str, Any],
    backend: str,
    inputs: dict[str, tuple[str, list[int]]],
    instances: dict[str, Any],
) -> None:
    serving = serving_of(artifact, "m", **options)
    parsed = client.ask("config", text=config_text(artifact, serving))
    assert "error" not in parsed, parsed
    assert (parsed["name"], parsed["backend"], parsed["max_batch_size"]) == ("m", backend, serving.batch)
    found = {each["name"]: (each["data_type"], [int(length) for length in each["dims"]]) for each in parsed["input"]}
    assert found == inputs
    assert [each.get("optional", False) for each in parsed["input"]] == [backend == "python"] * len(inputs)
    (output,) = parsed["output"]
    assert output == {"name": "descriptor", "data_type": "TYPE_FP32", "dims": [str(artifact.spec.descriptor_size)]}
    assert parsed["instance_group"] == [instances]
    assert parsed["dynamic_batching"] == {}
    assert parsed["version_policy"] == {"latest": {"num_versions": 1}}
    (warm_up,) = parsed["model_warmup"]
    assert set(warm_up["inputs"]) == (set(inputs) - {"image"})
    assert 1 <= warm_up["batch_size"] <= serving.batch
    assert parsed.get("default_model_filename") == {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}.get(backend)


@pytest.mark.triton
def test_a_text_of_no_configuration_is_noticed(client: Client) -> None:
    text = config_text(HEAD, serving_of(HEAD, "m"))
    assert "error" in client.ask("config", text=text.replace("max_batch_size", "most_batch_size"))


def test_the_descriptors_of_an_fp16_output_are_fp32_where_this_package_answers() -> None:
    halves = replace(PIPELINE, dtypes={"images": "uint8", "descriptor": "float16"})
    for backend, word in (("python", "TYPE_FP32"), ("onnxruntime", "TYPE_FP16")):
        text = config_text(halves, serving_of(halves, "m", backend=backend))
        assert f'name: "descriptor" data_type: {word}' in text


def test_an_engine_takes_the_batches_of_its_profiles() -> None:
    assert serving_of(ENGINE, "m").batch == 16
    assert serving_of(IMAGE_ENGINE, "m").batch == 4
    assert serving_of(ENGINE, "m", batch=3).batch == 3


@pytest.mark.parametrize(
    ("artifact", "options", "words"),
    [
        (HEAD, {"backend": "tensorrt"}, "does not run on Triton's tensorrt: leave --backend out, or take onnxruntime"),
        (HEAD, {"backend": "python"}, "takes local descriptors, python serves images"),
        (ENGINE, {"device": "cpu"}, "is an engine, which runs on a GPU alone"),
        (ENGINE, {"batch": 17}, "takes a batch of 16 at most, not 17: lower --batch"),
        (RTX, {}, "is of tensorrt-rtx, Triton's own backend runs tensorrt's alone"),
        (IMAGE_ENGINE, {"backend": "tensorrt"}, "takes batches of 2 or more, or no other: take --backend python"),
        (replace(HEAD, spec=HeadsSpec(heads={"a": SPEC, "b": SPEC}), inputs=("features.a", "features.b"),
                 dtypes=dict.fromkeys(("features.a", "features.b", "descriptor"), "float32")),
         {}, "has the heads a, b: export one with --prefix"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_so_is_refused(artifact: AnyArtifact, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        serving_of(artifact, "m", **options)


def test_a_graph_of_one_batch_size_is_for_this_package_s_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(PIPELINE, OnnxArtifact)
    monkeypatch.setattr(type(SPEC), "fixed_lengths", {"batch": 1})
    assert serving_of(PIPELINE, "m").backend == "python"
    with pytest.raises(UsageError, match="takes batches of 1 or more, or no other: take --backend python"):
        serving_of(PIPELINE, "m", backend="onnxruntime")
