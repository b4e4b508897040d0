"""Every command in the README and on the pages of docs is run here, and prints what the README says."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.photos import packaged, write_photos
from netvlad_deploy.models.backbones import find_backbone
from tests.export.foreign.graphs import Looped, export_by_torch
from tests.modules import features, make_module

pytestmark = [pytest.mark.export, pytest.mark.ort, pytest.mark.rtx, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NAMES = ("verbs", "embed", "machines", "dialects", "latency", "ci", "index")
PAGES = (README, *((ROOT / "docs" / f"{name}.md").read_text() for name in NAMES))
"""Pages with commands, in the order in which somebody goes through them: each goes on with the files of the last."""
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", "".join(PAGES), re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
IN_FOLDER = [line for line in COMMANDS if line.startswith("netvlad-deploy ")]
IN_CHECKOUT = [line for line in COMMANDS if not line.startswith("netvlad-deploy ")]
KINDS = {
    "From your checkpoint to a proven graph": {"model_best.onnx": "images"},
    "A robot with a Jetson": {"place.onnx": "images"},
    "A served endpoint": {"served.onnx": "images"},
    "A backbone and its head": {"place.engine": "images"},
    "A head alone": {
        "its_head.onnx": "features",
        "head.onnx": "features",
        "fp16.onnx": "features",
        "rtx.engine": "features",
    },
    "No checkpoint yet": {"vocabulary.onnx": "images", "netvlad.onnx": "features"},
    "An ONNX file that others made": {
        "foreign-adopted.onnx": "images",
        "half.onnx": "images",
        "its_head_alone.onnx": "features",
        "cosplace-adopted.onnx": "images",
    },
    "A backbone of your own": {"own.onnx": "images"},
}
"""What the artifacts of each section take, by the file that they are made of."""
TIMM = """
import torch

def create_model(name, pretrained):
    network = torch.nn.Conv2d(3, 16, 16, stride=16)
    network.forward_features = network.forward
    return network
"""
"""In place of timm, which is no dependency: a network with the one method that the example calls."""


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of a page in this test's environment; its comment may name further exit codes."""
    binaries = Path(sys.executable).parent
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS")}
    environment = {**outside, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}  # a make in a make says more
    arguments = ["bash", "-c", command]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def allowed_codes(command: str) -> set[int]:
    """Return the exit codes that a line's own comment names, by default 0 alone."""
    comment = command.partition("#")[2]
    return {int(code) for code in re.findall(r"\b(?:exit|or) (\d+)(?= |,|$)", comment)} | {0}


def sections() -> dict[str, list[str]]:
    """Return the user's commands of each section that has any, page by page, by its heading."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        heading = language = ""
        for line in page.splitlines():
            if line.startswith("```"):
                language = "" if language else line[3:]
            elif not language and line.startswith("#"):
                heading = line.strip("# ")
            elif language == "sh" and line.startswith("netvlad-deploy "):
                found.setdefault(heading, []).append(line)
    return found


def normalised(printed: str) -> list[str]:
    """Return the lines of an output without numbers, hashes, CUDA's reason and the widths of columns."""
    number = r"\b[\da-f]{16}\b|-?\d[\d.]*(e[+-]\d+)?|cudaError\w+"
    return [" ".join(re.sub(number, "0", line).split()) for line in printed.strip().splitlines()]


def outputs() -> list[str]:
    """Return the blocks of the README that say what commands print."""
    return re.findall(r"```text\n(.*?)```", README, re.DOTALL)


def test_the_commands_of_a_user_in_order(tmp_path: Path) -> None:
    torch.save({"state_dict": make_module(16, 64, 4).state_dict()}, tmp_path / "head.pth.tar")
    np.save(tmp_path / "x.npy", features(2, 30, 64))
    np.savez(tmp_path / "sequences.npz", allow_pickle=False, a=features(1, 9, 64)[0], b=features(1, 4, 64)[0])
    write_backbone(tmp_path / "model_best.pth.tar")
    write_foreign(tmp_path)
    (example,) = (text for language, text in BLOCKS if language == "python" and "# my_backbones.py" in text)
    (tmp_path / "my_backbones.py").write_text(example)
    (tmp_path / "timm.py").write_text(TIMM)
    queries, photos, _ = write_photos(tmp_path, packaged()[:6])
    assert (queries, photos) == (tmp_path / "queries", tmp_path / "photos")
    assert sum(map(len, sections().values())) == len(IN_FOLDER) == 67
    printed: dict[str, str] = {}
    for section, commands in sections().items():
        for command in commands:
            outcome = run(command, tmp_path)
            printed[command] = outcome.stdout
            codes = allowed_codes(command) - ({1} if "exit 0 if it is right" in command else set())
            assert outcome.returncode in codes, f"{command}\n{outcome.stdout}{outcome.stderr}"
        for name, takes in KINDS.get(section, {}).items():
            sidecar = json.loads((tmp_path / f"{name}.json").read_text())
            assert sidecar["inputs"][0] == takes, f"{section}: {name}"
    first = sections()["From your checkpoint to a proven graph"]
    assert normalised("".join(printed[command] for command in first)) == normalised(outputs()[0])
    assert np.load(tmp_path / "y.npy").shape == (2, 16 * 64)
    with np.load(tmp_path / "photos.npz") as embedded:
        assert embedded["descriptors"].shape == (6, 8 * 256)
    assert (tmp_path / "evaluation" / "matches.png").exists()
    assert json.loads((tmp_path / "deployment" / "report.json").read_text())["schema"] == "netvlad-deploy/deploy/2"


def test_every_page_with_commands_is_read() -> None:
    pages = {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")}
    pages -= {ROOT / "docs" / "fleet.md"}  # its scripts have a test of their own, its clusters the tests of embed --ray
    assert {page.read_text() for page in pages if "```sh" in page.read_text()} == set(PAGES)
    assert set(KINDS) <= set(sections())


def test_the_readme_stays_an_introduction() -> None:
    assert README.count("\n") <= 160


def test_only_numbers_of_an_output_are_not_compared() -> None:
    assert normalised("PASS  1.3e-15  -  0.025") == normalised("PASS  8.0e-16  -  12")
    assert normalised("PASS  1.3e-15") != normalised("FAIL  1.3e-15")
    assert normalised("a 1\nb") != normalised("a 1")


def test_two_commands_from_a_trained_checkpoint_to_a_validated_artifact() -> None:
    export, validate = sections()["From your checkpoint to a proven graph"]
    assert shlex.split(export, comments=True) == ["netvlad-deploy", "export", "model_best.pth.tar"]
    assert shlex.split(validate, comments=True) == ["netvlad-deploy", "validate", "model_best.onnx"]


def write_backbone(path: Path) -> None:
    """Write a checkpoint of a ResNet-18 with a head, as the benchmark saves it: random weights, measured statistics."""
    torch.manual_seed(0)
    backbone = find_backbone("resnet18-conv4").build().train()
    with torch.no_grad():
        for _ in range(20):  # else activations are flat, and every image looks the same
            backbone(torch.nn.functional.interpolate(torch.randn(4, 3, 12, 16), size=(96, 128)))
    state = {f"backbone.{name}": tensor for name, tensor in backbone.eval().state_dict().items()}
    state |= {"aggregation.conv.weight": torch.randn(8, 256, 1, 1), "aggregation.centroids": torch.randn(8, 256)}
    torch.save({"model_state_dict": state, "best_r5": 91.5}, path)


def write_foreign(folder: Path) -> None:
    """Write an ONNX file with a NetVLAD, and one of another network, as torch's older exporter does."""
    torch.manual_seed(0)
    vlad = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), Looped(8, 16))
    pooled = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    for name, module in (("foreign", vlad), ("cosplace", pooled)):
        export_by_torch(module, folder / f"{name}.onnx", torch.zeros(1, 3, 96, 128))


def test_the_commands_in_a_checkout() -> None:
    assert [shlex.split(command, comments=True) for command in IN_CHECKOUT] == [
        ["python3", "-m", "pip", "install", "-c", "constraints.txt", "-e", ".[export,cpu,rtx,images,report]"],
        ["make", "demo"],
        ["make", "test"],
        ["python3", "-m", "netvlad_deploy.serving", "--model-repository=repository"],  # run in tests/serving
        ["make", "wheel"],
        ["python3", "-m", "pip", "install", "dist/netvlad_deploy-0.1.0-py3-none-any.whl[export,cpu,images]"],
        ["python3", "-m", "venv", "--system-site-packages", ".venv"],
        [".venv/bin/python", "-m", "pip", "install", "-e", ".[images]", "cuda-bindings>=12,<13"],
        ["python3", "-m", "pip", "install", "-e", ".[export,gpu,images,index,report,tensorrt]"],
        ["python3", "-m", "pip", "install", "-e", ".[cpu,openvino]"],
    ]
    assert "netvlad_deploy-" + re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[
        0
    ] + "-py3" in "".join(COMMANDS), "make wheel, of tests/docs/test_wheel.py, names the file so"


def test_make_demo(tmp_path: Path) -> None:
    """The corridor and the street, of the shared data, are measured by `make bars`."""
    environment = f"VENV={shlex.quote(sys.prefix)} INSTALLED= DEMO={shlex.quote(str(tmp_path / 'demo'))}"
    outcome = run(f"NETVLAD_DATA=none make demo {environment}", ROOT)
    assert outcome.returncode == 0, outcome.stderr
    assert "PASS     parity of the ONNX file" in outcome.stdout
    printed = outcome.stdout[outcome.stdout.index("verdict ") :].replace(f"{tmp_path}{os.sep}", "")
    if "no usable NVIDIA GPU" in printed:
        assert normalised(printed) == normalised(outputs()[1])
    page = (tmp_path / "demo" / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert pictures == ["photos/matches.png"]
    assert (tmp_path / "demo" / pictures[0]).stat().st_size > 100_000


def test_make_figure_draws_the_picture_of_the_readme(tmp_path: Path) -> None:
    assert "`make figure`" in README
    target = tmp_path / "figure.svg"
    outcome = run(f"make figure VENV={shlex.quote(sys.prefix)} INSTALLED= FIGURE={shlex.quote(str(target))}", ROOT)
    assert outcome.returncode == 0, outcome.stderr
    drawn, committed = (texts_of(path) for path in (target, ROOT / "docs" / "precision.svg"))
    assert drawn == committed


def texts_of(picture: Path) -> list[str]:
    """Return the texts of a picture: its coordinates may differ in the last digit from machine to machine."""
    return re.findall(r">([^<>]+)</text>", picture.read_text())


@pytest.mark.parametrize("command", [line for line in IN_CHECKOUT if "pip install" in line and ".whl" not in line])
def test_every_install_line_resolves(command: str) -> None:
    """TensorRT's libraries come from NVIDIA's package index, so that line is read without its dependencies."""
    command = command.replace(".venv/bin/python", "python3") + " --dry-run --no-build-isolation --quiet"
    outcome = run(command + (" --no-deps" if "tensorrt]" in command else ""), ROOT)
    assert outcome.returncode == 0, outcome.stderr
    assert "does not provide the extra" not in outcome.stderr


def test_an_environment_that_sees_the_systems_packages(tmp_path: Path) -> None:
    (command,) = (line for line in IN_CHECKOUT if "-m venv" in line)
    assert run(command, tmp_path).returncode == 0
    assert "include-system-site-packages = true" in (tmp_path / ".venv" / "pyvenv.cfg").read_text()


def test_links_lead_somewhere() -> None:
    """A link is to a file, or to one of the headings of a page, as GitHub names them."""
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for link, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            names = {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings(target)}
            assert not heading or heading in names, f"{page.name}: {link}#{heading}"


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE) if page.suffix == ".md" else []
