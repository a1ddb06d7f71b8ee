"""The doctor's report, from machines described by a typed fake; and what it reads of this machine and of nvidia-smi."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.metadata import requires

import pytest
from nearfield.apps.cli.doctor import (
    EXPORT_PACKAGES,
    RUN_PACKAGES,
    VERIFY_PACKAGES,
    Finding,
    examine,
    exit_code,
    report,
)
from nearfield.apps.cli.probe import Gpu, Machine, Memory, Probe, parse_gpus

GPU = Gpu(name="NVIDIA GeForce RTX 4090", driver="580.95", memory_bytes=24 << 30)
ALL = (*RUN_PACKAGES, *EXPORT_PACKAGES, *VERIFY_PACKAGES)


@dataclass
class FakeMachine:
    """A machine with everything for the CPU and no GPU, unless told otherwise."""

    packages: dict[str, str] = field(default_factory=lambda: dict.fromkeys(ALL, "1.2.3"))
    providers: list[str] = field(default_factory=lambda: ["CPUExecutionProvider"])
    failures: dict[str, str] = field(default_factory=dict)
    graphics: list[Gpu] = field(default_factory=list)

    def python_version(self) -> str:
        return "3.12.1"

    def platform(self) -> str:
        return "Windows 11, AMD64"

    def package_version(self, package: str) -> str | None:
        return self.packages.get(package)

    def onnxruntime_providers(self) -> list[str]:
        return self.providers

    def device_failure(self, device: str) -> str | None:
        return self.failures.get(device)

    def gpus(self) -> list[Gpu]:
        return self.graphics

    def memory(self) -> Memory:
        return Memory(total_bytes=32_000_000_000, available_bytes=20_000_000_000)

    def free_disk_bytes(self) -> int:
        return 100_000_000_000


def finding(probe: Probe, subject: str) -> Finding:
    (found,) = [entry for entry in examine(probe) if entry.subject == subject]
    return found


def test_a_machine_with_all_packages_can_run_a_bundle() -> None:
    findings = examine(FakeMachine())
    assert exit_code(findings) == 0
    assert report(findings).endswith("A bundle can be run here on the CPU.")


@pytest.mark.parametrize("package", RUN_PACKAGES)
def test_without_a_package_that_running_needs_the_exit_code_is_1_and_the_report_says_how_to_get_it(
    package: str,
) -> None:
    machine = FakeMachine()
    del machine.packages[package]
    findings = examine(machine)
    assert exit_code(findings) == 1
    assert f"{package}: pip install {package}" in report(findings)
    assert report(findings).endswith("A bundle can NOT be run here yet.")


def test_a_cpu_that_loads_no_graph_is_a_failure_with_its_reason() -> None:
    findings = examine(FakeMachine(failures={"cpu": "the file is damaged"}))
    assert exit_code(findings) == 1
    assert "device cpu: the file is damaged" in report(findings)


def test_onnxruntime_gpu_stands_in_for_onnxruntime() -> None:
    machine = FakeMachine()
    machine.packages["onnxruntime-gpu"] = machine.packages.pop("onnxruntime")
    assert exit_code(examine(machine)) == 0


def test_both_onnxruntime_packages_at_once_are_pointed_out() -> None:
    machine = FakeMachine()
    machine.packages["onnxruntime-gpu"] = "1.31.1"
    notes = [entry for entry in examine(machine) if entry.subject == "onnxruntime-gpu"]
    assert [entry.state for entry in notes] == ["note"]
    assert "pip uninstall" in notes[0].advice


def test_a_missing_extra_is_optional_and_named() -> None:
    machine = FakeMachine()
    del machine.packages["onnxscript"]
    found = finding(machine, "[export]")
    assert found.state == "optional"
    assert "onnxscript" in found.detail
    assert found.advice == 'in a clone of the repository: pip install ".[export]"'
    assert exit_code(examine(machine)) == 0


def test_a_gpu_without_its_packages_gets_advice_and_no_gpu_gets_none() -> None:
    assert finding(FakeMachine(), "device cuda").advice == ""
    assert "onnxruntime-gpu" in finding(FakeMachine(graphics=[GPU]), "device cuda").advice
    assert "onnxruntime-ep-nv-tensorrt-rtx" in finding(FakeMachine(graphics=[GPU]), "device tensorrt-rtx").advice
    assert finding(FakeMachine(graphics=[GPU]), "GPU").detail == "NVIDIA GeForce RTX 4090, driver 580.95, 25.77 GB"


def test_a_cuda_provider_counts_only_if_a_graph_loads_on_it() -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    works = FakeMachine(providers=providers, graphics=[GPU])
    fails = FakeMachine(providers=providers, graphics=[GPU], failures={"cuda": "libcudnn is missing"})
    assert finding(works, "device cuda").state == "ok"
    assert finding(fails, "device cuda") == Finding("optional", "device cuda", "does not work", "libcudnn is missing")
    assert exit_code(examine(fails)) == 0


def test_the_lists_of_packages_are_those_of_pyproject() -> None:
    declared: dict[str, set[str]] = {"": set(), "export": set(), "verify": set()}
    for line in requires("nearfield") or []:
        name = re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0].lower()
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        key = extra.group(1) if extra else ""
        if key in declared and name != "nearfield":
            declared[key].add(name)
    assert declared == {"": set(RUN_PACKAGES), "export": set(EXPORT_PACKAGES), "verify": set(VERIFY_PACKAGES)}


def test_nvidia_smi_is_read_and_what_is_not_a_gpu_is_left_out() -> None:
    text = "NVIDIA GeForce RTX 4090, 580.95, 24564\nNo devices were found\nOdd, 1.0, [N/A]\n"
    assert parse_gpus(text) == [Gpu("NVIDIA GeForce RTX 4090", "580.95", 24564 << 20)]


def test_this_machine_is_described() -> None:
    machine = Machine()
    assert machine.package_version("numpy") is not None
    assert machine.package_version("no-such-package-anywhere") is None
    assert "CPUExecutionProvider" in machine.onnxruntime_providers()
    assert 0 < machine.memory().available_bytes <= machine.memory().total_bytes
    assert machine.free_disk_bytes() > 0
    assert all(gpu.memory_bytes > 0 for gpu in machine.gpus())
