"""The description of the machine, on a Jetson and elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from netvlad_deploy.support.machine import describe_machine, installed_versions, peak_memory_bytes


def test_a_jetson_is_described_with_board_release_and_power_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "proc/meminfo": "MemTotal:       65976980 kB\nMemFree: 1 kB\n",
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081\nmore\n",
        "bin/nvpmodel": "#!/bin/sh\necho 'NV Power Mode: MODE_30W'; echo 2\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "bin" / "nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    facts = describe_machine(tmp_path)
    assert facts["memory"] == "62.9 GiB"
    assert facts["board"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert facts["jetson_linux"] == "R36 (release), REVISION: 4.3, GCID: 38968081"
    assert facts["power_mode"] == "MODE_30W"
    (tmp_path / "bin" / "nvpmodel").write_text("#!/bin/sh\necho 'needs root' >&2; exit 1\n")
    assert describe_machine(tmp_path)["power_mode"] == "unknown: nvpmodel -q does not say"


def test_other_machines_say_nothing_of_jetsons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(describe_machine(tmp_path)) == {"processor", "cores", "system", "python"}


def test_the_versions_that_matter_are_those_installed() -> None:
    versions = installed_versions()
    assert {"netvlad-deploy", "numpy"} <= set(versions)
    assert all(versions.values())


def test_the_memory_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    held = b"1" * 2**28
    line = "from netvlad_deploy.support.machine import peak_memory_bytes; print(peak_memory_bytes())"
    outcome = subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True)
    assert 2**20 < int(outcome.stdout) < len(held) < peak_memory_bytes()
