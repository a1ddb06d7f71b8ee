"""What `nearfield doctor` asks a machine: the questions (`Probe`) and the machine's own answers (`Machine`)."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...errors import NearfieldError
from .common import DEMO_BUNDLE

if TYPE_CHECKING:
    from ...runtime.session import Device

_NVIDIA_SMI_TIMEOUT_S = 20.0
_MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it."""

    name: str
    driver: str
    memory_bytes: int


@dataclass(frozen=True)
class Memory:
    """Main memory."""

    total_bytes: int
    available_bytes: int


class Probe(Protocol):
    """Everything the doctor wants to know of a machine."""

    def python_version(self) -> str:
        """Version of the running Python."""
        ...

    def platform(self) -> str:
        """Operating system and processor."""
        ...

    def package_version(self, package: str) -> str | None:
        """Installed version of a package, None if it is not installed."""
        ...

    def onnxruntime_providers(self) -> list[str]:
        """Execution providers of the installed ONNX Runtime, none if it cannot be imported."""
        ...

    def device_failure(self, device: Device) -> str | None:
        """Load a graph on the device; None if that worked, else why not."""
        ...

    def gpus(self) -> list[Gpu]:
        """NVIDIA GPUs."""
        ...

    def memory(self) -> Memory:
        """Main memory."""
        ...

    def free_disk_bytes(self) -> int:
        """Room on the disk of the current directory."""
        ...


class Machine:
    """The machine this runs on."""

    def python_version(self) -> str:
        """Version of the running Python."""
        return platform.python_version()

    def platform(self) -> str:
        """Operating system and processor."""
        return f"{platform.system()} {platform.release()}, {platform.machine()}"

    def package_version(self, package: str) -> str | None:
        """Installed version of a package, None if it is not installed."""
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def onnxruntime_providers(self) -> list[str]:
        """Execution providers of the installed ONNX Runtime, none if it cannot be imported."""
        try:
            import onnxruntime
        except ImportError:
            return []
        return list(onnxruntime.get_available_providers())

    def device_failure(self, device: Device) -> str | None:
        """Load the demo bundle's vocoder on the device; None if that worked, else why not."""
        try:
            from ...runtime.session import SessionSettings, open_session

            open_session(DEMO_BUNDLE / "vocoder.onnx", SessionSettings(device=device))
        except (ImportError, NearfieldError) as error:
            return str(error)
        return None

    def gpus(self) -> list[Gpu]:
        """NVIDIA GPUs, as nvidia-smi lists them; it comes with the driver on Linux and Windows."""
        return parse_gpus(nvidia_smi("name,driver_version,memory.total"))

    def memory(self) -> Memory:
        """Main memory."""
        import psutil

        found = psutil.virtual_memory()
        return Memory(total_bytes=found.total, available_bytes=found.available)

    def free_disk_bytes(self) -> int:
        """Room on the disk of the current directory."""
        return shutil.disk_usage(Path.cwd()).free


def nvidia_smi(fields: str) -> str:
    """What nvidia-smi says of these fields, a line for each GPU and memory in MiB; nothing where it cannot say."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):  # it is there without a driver or a GPU
        return ""
    return answer.stdout


def parse_gpus(text: str) -> list[Gpu]:
    """GPUs from nvidia-smi's answer, lines of `name, driver version, memory in MiB`."""
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    return [
        Gpu(name=row[0], driver=row[1], memory_bytes=int(row[2]) * _MIB)
        for row in rows
        if len(row) == 3 and row[2].strip().isdigit()
    ]
