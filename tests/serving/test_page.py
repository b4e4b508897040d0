"""The README's way from a checkpoint to a served endpoint, and the clients of docs/triton.md, run as they stand."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from netvlad_deploy.artifact import OnnxArtifact, load_artifact, stage_artifact
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.retrieval.decoding import decode_image
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.support.files import stage_files
from tests.docs.test_readme import write_backbone
from tests.serving import triton
from tests.serving.triton import Client

pytestmark = [pytest.mark.triton, pytest.mark.export, pytest.mark.ort]

PAGE = (triton.ROOT / "docs" / "triton.md").read_text()
README = (triton.ROOT / "README.md").read_text()


def commands(text: str, language: str) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.slow
def test_three_commands_serve_a_checkpoint_and_the_clients_of_the_page_ask(tmp_path: Path, client: Client) -> None:
    export, package, serve = commands(README.partition("### A served endpoint")[2].partition("###")[0], "sh")
    write_backbone(tmp_path / "model_best.pth.tar")
    for command in (export, package):
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(Path(sys.executable)), check=True)
    ports = {"--http-port": triton.free_port(), "--grpc-port": triton.free_port()}
    options = [f"{name}={port}" for name, port in ports.items()]
    line = f"exec {serve.partition('#')[0]} {' '.join(options)} --allow-metrics=false"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(["bash", "-c", line], cwd=tmp_path, env=environment(triton.python()), stderr=log)
    try:
        wait(client, f"127.0.0.1:{ports['--grpc-port']}", server, tmp_path / "log")
        pixels = golden_image(96, 128, seed=5)
        Image.fromarray(pixels).save(tmp_path / "photo.jpg", "PNG")  # lossless: the name does not matter
        artifact = load_artifact(tmp_path / "served.onnx")
        assert artifact.images is not None
        with open_runner(artifact) as runner:
            right = runner.run({IMAGES: decode_image(pixels, artifact.images)[None]})["descriptor"]
        for module in ("grpc", "http"):
            photo, frame = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
            code = f"{photo}np.save('found.npy', descriptor)\n{frame}print(descriptor.shape)"
            code = code.replace("tritonclient.grpc", f"tritonclient.{module}")
            code = code.replace("127.0.0.1:8001", f"127.0.0.1:{ports[f'--{module}-port']}")
            done = subprocess.run(
                [triton.python(), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stdout) == (0, "(1, 2048)\n"), done.stderr
            np.testing.assert_allclose(np.load(tmp_path / "found.npy"), right, atol=2e-6)
    finally:
        server.terminate()
        assert server.wait(40) == 0


def test_the_command_of_the_page_makes_the_files_that_it_lists(tiny: OnnxArtifact, tmp_path: Path) -> None:
    served = with_name(tiny, tmp_path / "served.onnx")
    command = next(line for line in commands(PAGE, "bash") if line.startswith("netvlad-deploy"))
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment(Path(sys.executable)), check=True)
    listed = set(re.findall(r"^    (repository/\S+)", PAGE, re.MULTILINE))
    found = {str(each.relative_to(tmp_path)) for each in (tmp_path / "repository").rglob("*") if each.is_file()}
    assert found - listed == {"repository/places/1/model.onnx.json"}, served
    assert listed <= found


def with_name(artifact: OnnxArtifact, path: Path) -> OnnxArtifact:
    """Write an artifact anew under a name of its own."""
    reference = replace(artifact.reference, name=f"{path.stem}.reference.npz")
    named = replace(artifact, path=path, reference=reference)
    with stage_files(force=False) as staging:
        stage_artifact(staging, named, artifact.path.read_bytes())
        staging.write(named.reference_path, artifact.reference_path.read_bytes())
    return named


def environment(python: Path) -> dict[str, str]:
    """Return the environment in which the commands of this Python come first."""
    outside = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return {**outside, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}


def wait(client: Client, address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    ends = time.monotonic() + triton.READY_S
    while time.monotonic() < ends and server.poll() is None:
        asked = {"protocol": "grpc", "address": address, "method": "is_server_ready"}
        if client.ask("call", **asked).get("answer"):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace")[-3000:])
