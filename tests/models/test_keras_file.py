"""Keras models: the weights that are read of a file, in HDF5 as Keras 2 and 3 write it, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import InputError, MissingDependencyError
from netvlad_deploy.models import keras_file
from netvlad_deploy.models.checkpoints import read_head
from netvlad_deploy.models.weights_file import read_tensors
from netvlad_deploy.support.arrays import Array
from tests.models.dialects.tensorflow_samples import TENSORFLOW_SAMPLES
from tests.models.dialects.test_dialects import errors, expected_of, local_descriptors

h5py = pytest.importorskip("h5py")
from tests.models.keras_files import write_keras, write_layers  # noqa: E402 - it needs h5py

pytestmark = pytest.mark.export

STATE: dict[str, Array] = {
    "net_vlad_1.cluster_centers": np.ones((1, 1, 1, 3, 2), np.float32),
    "net_vlad_1.kernel": np.arange(6, dtype=np.float32).reshape(1, 1, 3, 2),
}
DIALECTS = ("netvlad-keras", "tensorflow2-netvlad", "cerebro", "loupe-keras")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", DIALECTS)
def test_a_file_equals_the_formula_and_says_what_it_assumes(tmp_path: Path, name: str, whole: bool) -> None:
    sample = TENSORFLOW_SAMPLES[name]
    arrays = {key: tensor.numpy() for key, tensor in sample.state.items()}
    head = read_head(write_keras(tmp_path / "m.h5", arrays, whole=whole))
    assert head.dialect == name
    assert head.assumed.startswith(f"{name}, by the names and shapes of {sample.prefix}.* alone (local descriptors ")
    x = local_descriptors(sample.width, tiny=sample.tiny)
    assert max(errors(head, expected_of(sample, x), x)) < 1e-10


def test_keras_3_names_the_model_and_the_convolution_within(tmp_path: Path) -> None:
    sample = TENSORFLOW_SAMPLES["tensorflow2-netvlad"]
    arrays = {key: tensor.numpy() for key, tensor in sample.state.items()}
    layers = {
        "net_vlad": {
            "sequential/net_vlad/cluster_centers": arrays["net_vlad.cluster_centers"],
            "sequential/net_vlad/conv2d/kernel": arrays["net_vlad.kernel"],
            "sequential/net_vlad/conv2d/bias": arrays["net_vlad.bias"],
        },
        "dense": {f"sequential/dense/{part}": arrays[f"dense.{part}"] for part in ("kernel", "bias")},
    }
    with h5py.File(tmp_path / "m.keras", "w") as file:
        write_layers(file.create_group("model_weights"), layers)
    head = read_head(tmp_path / "m.keras")
    x = local_descriptors(sample.width)
    assert head.dialect == sample.dialect
    assert max(errors(head, expected_of(sample, x), x)) < 1e-10


@pytest.mark.parametrize("attribute", ["layer_names", "layer_names0"])
def test_layers_come_by_their_numbers(tmp_path: Path, attribute: str) -> None:
    names = ["conv2d", *(f"conv2d_{number}" for number in range(1, 12)), "dense"]
    with h5py.File(tmp_path / "m.h5", "w") as file:
        write_layers(file, {name: {f"{name}/kernel:0": np.ones(2, np.float16)} for name in reversed(names)})
        listed = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs[attribute] = listed
    assert list(read_tensors(tmp_path / "m.h5")) == [f"{name}.kernel" for name in names]


def test_weights_of_nested_models_and_of_named_layers_have_the_layer_first(tmp_path: Path) -> None:
    layers: dict[str, dict[str, Array]] = {
        "vgg16": {"block1_conv1/kernel:0": np.ones(2), "block1_conv1/bias:0": np.ones(2)},
        "gvlad_pool": {"gvlad_pool/centers:0": np.ones((3, 2))},
        "model_1": {"net_vlad_1/cluster_centers:0": np.ones(2)},
    }
    with h5py.File(tmp_path / "m.h5", "w") as file:
        write_layers(file, layers)
    assert sorted(read_tensors(tmp_path / "m.h5")) == [
        "gvlad_pool.centers",
        "model_1.net_vlad_1.cluster_centers",
        "vgg16.block1_conv1.bias",
        "vgg16.block1_conv1.kernel",
    ]


def test_compressed_arrays_are_read(tmp_path: Path) -> None:
    with h5py.File(write_keras(tmp_path / "m.h5", STATE), "r+") as file:
        del file["net_vlad_1/net_vlad_1/kernel:0"]
        file["net_vlad_1"].create_dataset("net_vlad_1/kernel:0", data=STATE["net_vlad_1.kernel"], compression="gzip")
    assert np.array_equal(read_tensors(tmp_path / "m.h5")["net_vlad_1.kernel"].numpy(), STATE["net_vlad_1.kernel"])


KERNEL = "net_vlad_1/net_vlad_1/kernel:0"


def external_link(file: Any) -> None:
    file["net_vlad_1/net_vlad_1"][KERNEL.rpartition("/")[2]] = h5py.ExternalLink("other.h5", "/secret")


def soft_link(file: Any) -> None:
    file[KERNEL] = h5py.SoftLink("/net_vlad_1/net_vlad_1/cluster_centers:0")


def external_values(file: Any) -> None:
    file.create_dataset(KERNEL, (2,), "f4", external=[("values.bin", 0, 8)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (2,))
    file.create_virtual_dataset(KERNEL, layout)


def bomb(file: Any) -> None:
    file.create_dataset(KERNEL, (1 << 16, 1 << 16), "f4", chunks=(1 << 8, 1 << 8), compression="gzip")


def large_chunk(file: Any) -> None:
    file.create_dataset(KERNEL, (2,), "f4", chunks=(1 << 28,), maxshape=(None,), compression="gzip")


def text(file: Any) -> None:
    file.create_dataset(KERNEL, data=[b"a", b"b"])


def many(file: Any) -> None:
    for number in range(40):
        file.create_group(f"{KERNEL}/{number}")


def deep(file: Any) -> None:
    file[KERNEL + "/a" * 20] = np.ones(2)


def loop(file: Any) -> None:
    file[KERNEL] = file["net_vlad_1"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (external_link, "has a link in place of kernel:0: save it again into one file"),
        (soft_link, "has a link in place of kernel:0"),
        (external_values, "keeps the values of kernel:0 in another file"),
        (virtual, "keeps the values of kernel:0 in another file"),
        (bomb, "claims more than 32 times its own size"),
        (large_chunk, "claims more than 32 times its own size"),
        (text, "holds net_vlad_1/net_vlad_1/kernel:0, which is no array of real numbers"),
        (many, "holds more than 40 groups and arrays"),
        (deep, "which is no array of real numbers"),
        (loop, "holds two weights that are called net_vlad_1.kernel"),
    ],
)
def test_links_bombs_and_other_contents_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Any], None], words: str
) -> None:
    monkeypatch.setattr(keras_file, "MAX_ENTRIES", 40)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones(2, np.float32)
    with h5py.File(write_keras(tmp_path / "m.h5", STATE), "r+") as file:
        del file[KERNEL]
        damage(file)
    with pytest.raises(InputError, match=words) as refused:
        read_tensors(tmp_path / "m.h5")
    assert str(refused.value).startswith(str(tmp_path / "m.h5"))


def test_two_weights_of_one_name_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        write_layers(file, {"a": {"a/w:0": np.ones(2), "a/w:1": np.ones(2)}})
    with pytest.raises(InputError, match=r"holds two weights that are called a\.w: save one model alone"):
        read_tensors(tmp_path / "m.h5")


def test_other_files_of_hdf5_and_of_keras_3_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = np.ones(2)
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        file["layers/net_vlad/vars/0"] = np.ones(2)
    (tmp_path / "t.h5").write_bytes(b"no such thing\0")
    (tmp_path / "cut.h5").write_bytes(write_keras(tmp_path / "m.h5", STATE).read_bytes()[:900])
    for name, words in {
        "data.h5": "is no model of Keras: it has no layer_names",
        "m.weights.h5": r"is of Keras 3 without the names of its weights.*save it with model\.save\('model\.h5'\)",
        "t.h5": "is no HDF5 file, which its name says it is",
        "cut.h5": "is damaged or cut short",
    }.items():
        with pytest.raises(InputError, match=words):
            read_tensors(tmp_path / name)


def test_a_model_without_a_netvlad_is_refused_with_its_names(tmp_path: Path) -> None:
    path = write_keras(tmp_path / "m.h5", {"dense_1.kernel": np.ones((3, 2)), "dense_1.bias": np.ones(2)})
    with pytest.raises(InputError, match=r"nearest dialect, found dense_1\.bias, dense_1\.kernel|lacks clusters"):
        read_head(path)


def test_what_is_beside_the_layer_is_refused_by_name(tmp_path: Path) -> None:
    arrays = {**STATE, "mobilenet.conv1.kernel": np.ones((3, 3, 3, 3), np.float32)}
    path = write_keras(tmp_path / "m.h5", arrays)
    with pytest.raises(InputError, match=r"holds mobilenet\.\* \(1 tensor\) beside the head.*--input features"):
        read_head(path, with_backbone=True)
    assert read_head(path).spec.num_clusters == 2
    two = write_keras(tmp_path / "two.h5", {**STATE, **{f"dense{at}.kernel": np.ones((6, 4)) for at in range(2)}})
    with pytest.raises(InputError, match=r"holds 2 layers that take 6 values, expected one: dense0\., dense1\."):
        read_head(two)


def test_two_layers_of_gating_are_refused(tmp_path: Path) -> None:
    arrays = {key: tensor.numpy() for key, tensor in TENSORFLOW_SAMPLES["loupe-keras"].state.items()}
    path = write_keras(tmp_path / "m.h5", {**arrays, "gating_2.kernel_W1": np.ones((6, 6), np.float32)})
    with pytest.raises(InputError, match=r"holds 2 layers of gating, expected one: context_gating_1\., gating_2\."):
        read_head(path)


def test_without_h5py_the_line_that_installs_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_keras(tmp_path / "m.h5", STATE)

    def require(_: str, *, extra: str) -> Any:
        raise MissingDependencyError(f"pip install '.[{extra}]'")

    monkeypatch.setattr(keras_file, "require", require)
    with pytest.raises(MissingDependencyError, match="keras"):
        read_tensors(path)
