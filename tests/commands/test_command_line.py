"""What every verb has in common at the command line: help, version, messages, choices and completion."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from netvlad_deploy.cli import app
from netvlad_deploy.commands.as_command import SECTIONS_BY_NAME
from netvlad_deploy.report.doctor import Diagnosis
from netvlad_deploy.runtime.execution_providers import PROVIDERS
from netvlad_deploy.runtime.open_runner import ENGINES
from netvlad_deploy.runtime.openvino_runner import OPENVINO
from netvlad_deploy.spec.backends import BACKENDS, NO_GRAPHS, STRICT, TIMED
from netvlad_deploy.support.files import write_text
from netvlad_deploy.support.require import installed_version
from netvlad_deploy.workflow import doctor
from tests.command import Command, error_of

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("verb", ["", *COMMANDS])
def test_every_help_has_whole_lines_and_all_options(
    command: Command, monkeypatch: pytest.MonkeyPatch, verb: str, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    outcome = command(*verb.split(), "-h")
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= int(columns)
    assert "..." not in outcome.out.replace("[ARGS]...", "").replace("[INPUT]...", "").replace(
        "[ARTIFACT]...", ""
    ).replace("}...", "").replace('", ...]', "")
    for parameter in COMMANDS[verb].params if verb else ():
        assert max(parameter.opts, key=len) in outcome.out or parameter.param_type_name == "argument"


def test_the_options_of_a_verb_stand_in_sections(command: Command) -> None:
    out = command("deploy", "-h").out
    titles = [line.rstrip(":") for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Arguments", "Weights", "Images", "Graph", "Engine", "Run", "Checks", "Output", "General"]
    graph = out.partition("\nGraph:")[2].partition("\n\n")[0]
    assert "--precision fp32|fp16" in graph
    assert "--flavor" not in graph


def test_every_name_with_a_section_is_of_an_option() -> None:
    known = {parameter.name for each in COMMANDS.values() for parameter in each.params} | {"help"}
    assert {name for names in SECTIONS_BY_NAME.values() for name in names} <= known


def test_the_version(command: Command) -> None:
    outcome = command("--version")
    assert (outcome.code, outcome.out) == (0, f"netvlad-deploy {installed_version('netvlad-deploy')}\n")


@pytest.mark.parametrize("before", [True, False])
def test_quiet_and_verbose_stand_before_the_verb_and_behind_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    def diagnose() -> Diagnosis:
        logging.getLogger("netvlad_deploy.some.room").info("a step")
        logging.getLogger("netvlad_deploy.some.room").warning("a doubt")
        write_text(Path("m.txt"), "")
        return Diagnosis(machine={"system": "Linux"}, packages={}, extras={}, gpu=None, checks=(), broken=())

    def said(*option: str) -> list[str]:
        outcome = command(*(*option, "doctor") if before else ("doctor", *option))
        assert (outcome.code, outcome.out.splitlines()[0]) == (0, "system: Linux")
        return outcome.err.splitlines()

    monkeypatch.setattr(doctor, "diagnose", diagnose)
    assert said("-q") == ["a doubt"]
    verbose = [re.sub(r"^ *\d+\.\d{3} s  ", "", line) for line in said("--verbose")]
    assert verbose[-3:] == ["a step", "a doubt", "wrote m.txt"]
    assert said() == ["a step", "a doubt"], "each run starts anew"


@pytest.mark.parametrize(
    "words", [("-q", "doctor", "-v"), ("-v", "doctor", "-q"), ("-q", "-v", "doctor"), ("doctor", "-qv")]
)
def test_quiet_and_verbose_contradict_each_other(command: Command, words: tuple[str, ...]) -> None:
    outcome = command(*words)
    assert outcome.code == 2
    assert "--quiet and --verbose contradict each other" in error_of(outcome.err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "--precision", "int8"), "precision 'int8' is unknown: choose fp32 or fp16"),
        (("export", "--input-dtype", "half"), "input-dtype 'half' is unknown: choose float32 or float16"),
        (("build", "m.onnx", "--flavor", "trt"), "flavor 'trt' is unknown: choose tensorrt or tensorrt-rtx"),
        (("bench", "m.onnx", "--backend", "torch", "--backend", "cpu"), "choose one of onnxruntime, "),
        (("adopt", "m.onnx", "--input", "sound"), "input 'sound' is unknown: choose images or features"),
    ],
)
def test_a_word_that_is_no_choice_is_refused_with_the_choices(
    command: Command, words: tuple[str, ...], said: str
) -> None:
    outcome = command(*words)
    assert outcome.code == 2
    assert said in error_of(outcome.err)


def test_the_names_of_the_backends_are_of_those_that_there_are() -> None:
    assert (*PROVIDERS, OPENVINO, STRICT, ENGINES, NO_GRAPHS, "torch", "oracle") == BACKENDS
    assert set(BACKENDS) - set(TIMED) == {STRICT}


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("netvlad-deploy ev", ["evaluate"]),
        ("netvlad-deploy export --prec", ["--precision"]),
        ("netvlad-deploy export --precision ", ["fp32", "fp16"]),
        ("netvlad-deploy bench m.onnx --backend onnxruntime-t", ["onnxruntime-tensorrt"]),
    ],
)
def test_the_shell_completes(
    command: Command, monkeypatch: pytest.MonkeyPatch, typed: str, completed: list[str]
) -> None:
    monkeypatch.setenv("_NETVLAD_DEPLOY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    assert command().out.split() == completed


def test_a_child_process_says_as_much_as_its_parent() -> None:
    code = (
        "import logging, sys\n"
        "from netvlad_deploy.support import children\n"
        "logging.basicConfig(format='%(message)s')\n"
        "logging.getLogger('netvlad_deploy').setLevel(sys.argv[1])\n"
        "with children.Child('tests.support.talker', 'a talker') as child:\n"
        "    child.send({})\n"
        "    child.receive()\n"
    )

    def said(level: str) -> list[str]:
        line = [sys.executable, "-c", code, level]
        root = Path(__file__).parents[2]
        done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=True)
        return [line for line in done.stderr.splitlines() if not line.startswith("started a talker")]

    assert said("DEBUG") == ["debug", "info", "warning"]
    assert said("INFO") == ["info", "warning"]
