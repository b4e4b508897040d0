"""Callables of the user's that end the process, read from the terminal, print, or raise anything."""

import json
from pathlib import Path

import pytest

from tests.command import Command, error_of

pytestmark = [pytest.mark.export]

SOURCE = '''
import os
import sys

import torch


class Own(Exception):
    """An error that is of none of Python's kinds."""


def raises_its_own():
    raise Own("of\\nmine")


def asks():
    return input()


def asserts():
    assert False, "no"


def leaves():
    os.kill  # it is there, and not called
    sys.exit("gone")


def gives_no_memory():
    raise MemoryError


def stops():
    return next(iter(()))


def interrupts():
    raise KeyboardInterrupt


class Prints(torch.nn.Conv2d):
    def __init__(self):
        print("loading the weights")
        super().__init__(3, 4, 3, stride=16, padding=1)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "callables_of_mine.py").write_text(SOURCE)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sys:exit", "SystemExit"),
        ("callables_of_mine:leaves", "SystemExit: gone"),
        ("callables_of_mine:raises_its_own", "Own: of mine"),
        ("callables_of_mine:asks", "Error"),
        ("callables_of_mine:asserts", "AssertionError: no"),
        ("callables_of_mine:gives_no_memory", "MemoryError"),
        ("callables_of_mine:stops", "StopIteration"),
        ("os:getcwd", "returned a str"),
    ],
)
def test_every_fault_of_the_users_code_is_one_line_and_exit_2(
    command: Command, folder: Path, name: str, said: str
) -> None:
    outcome = command("export", "--backbone", name)
    assert outcome.code == 2
    assert error_of(outcome.err).startswith(f"error: --backbone {name} ")
    assert said in error_of(outcome.err)
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["callables_of_mine.py"]


def test_an_interrupt_stays_one(command: Command, folder: Path) -> None:
    assert command("export", "--backbone", "callables_of_mine:interrupts").code == 130


@pytest.mark.ort
def test_output_of_the_users_code_is_no_result(command: Command, folder: Path) -> None:
    outcome = command("export", "--backbone", "callables_of_mine:Prints", "--clusters", 2, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["schema"] == "netvlad-deploy/export/1"
    assert "loading the weights" in outcome.err
