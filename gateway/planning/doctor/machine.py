"""What of this machine, and of a model folder, keeps an engine from working here, and what to do about it.

Nothing is imported to find out: versions come from the packages' metadata, the card's from nvidia-smi.
"""

from __future__ import annotations

import errno
import re
import shutil
import socket
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from gateway.planning.gpu import Gpu, NoGpu, query_gpus
from modelfiles.hardware.gpus import GIB

OK, WARNING, ERROR = "ok", "warning", "error"

# Versions that work with LMDeploy 0.18: its METADATA and pytorch/check_env; for Qwen3-VL transformers >= 4.57.
WITH_LMDEPLOY = {
    "lmdeploy": ">=0.18,<0.19",
    "torch": ">=2.4,<=2.12.1",
    "torchvision": "<=0.27.1",
    "triton": ">=3.4.0,<=3.7.1",
    "transformers": ">=4.57,!=5.0.*,!=5.1.*,!=5.2.*,!=5.3.*,!=5.4.*,!=5.5.0,!=5.7.*,!=5.8.*,!=5.9.*",
}
# Of the embedded engine: pyproject.toml's extra `cpu`.
WITHOUT_LMDEPLOY = {"torch": ">=2.4", "torchvision": ">=0.19", "transformers": ">=5.20"}
# LMDeploy imports peft only for adapters, and pins it lower than training may have it.
PEFT_WITH_LMDEPLOY = "<=0.14.0"
# The lowest driver of a CUDA major version (NVIDIA, CUDA Toolkit release notes, table of minor version compatibility).
MIN_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
# The lowest compute capability that builds for a CUDA major version still have (the same notes, removed features).
MIN_CAPABILITY = {13: (7, 5)}
# Conv3d, the first layer of Qwen's vision tower, takes 10x the time and twice the memory in 16 bit without cuDNN 9.15:
# pytorch issues 166643 and 174051. 2.9.0 never uses cuDNN there, 2.9.1 does from 9.15 on.
SLOW_CONVOLUTION = SpecifierSet("==2.9.*")
MIN_CUDNN = Version("9.15")
MIN_FREE_MEMORY, MIN_FREE_DISK = 8 * GIB, 10 * GIB


@dataclass(frozen=True)
class MachineFinding:
    """What was looked at, how it is, and what to do about it if it isn't well."""

    level: str
    subject: str
    what: str
    change: str = ""


def check_machine(port: int) -> list[MachineFinding]:
    """Everything about this machine that serving depends on. `port` is the gateway's."""
    versions = {name: version for name in (*WITH_LMDEPLOY, "peft") if (version := installed_version(name))}
    findings = [*_python()]
    gpu: Gpu | None = None
    try:
        gpus = query_gpus()
        gpu = gpus[0]
        findings += [_card(one, at) for at, one in enumerate(gpus)]
    except NoGpu as error:
        change = "The embedded transformers engine serves on the CPU; LMDeploy needs an NVIDIA GPU."
        findings.append(MachineFinding(OK, "GPU", f"None: {error}.", change))
    findings += _packages(versions, gpu)
    if gpu is not None and "torch" in versions:
        findings += _cuda(versions["torch"], gpu)
    if gpu is not None and "lmdeploy" in versions:
        findings += _compiler()
    findings += [_memory(), _disk(), _port(port)]
    return findings


def installed_version(name: str) -> Version | None:
    try:
        return Version(metadata.version(name))
    except (metadata.PackageNotFoundError, InvalidVersion):
        return None


def _python() -> Iterator[MachineFinding]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    yield MachineFinding(
        OK if fits else ERROR, "Python", version, "" if fits else "LMDeploy has builds for Python 3.10 to 3.13."
    )


def _card(gpu: Gpu, at: int) -> MachineFinding:
    capability = "{}.{}".format(*gpu.capability)
    what = f"{gpu.name}, compute capability {capability}, {gpu.free / GIB:.1f} of {gpu.memory / GIB:.1f} GiB free"
    what += f", driver {gpu.driver}"
    if gpu.capability < (7, 0):
        return MachineFinding(ERROR, f"GPU {at}", what, "LMDeploy's kernels need compute capability 7.0 or later.")
    if gpu.free < 0.9 * gpu.memory:
        return MachineFinding(WARNING, f"GPU {at}", what, "Another process holds memory; nvidia-smi names it.")
    return MachineFinding(
        OK, f"GPU {at}", what, "" if gpu.bf16 else "No bfloat16: models run in float16, in eager mode."
    )


def _packages(versions: dict[str, Version], gpu: Gpu | None) -> Iterator[MachineFinding]:
    wanted = WITH_LMDEPLOY if "lmdeploy" in versions else WITHOUT_LMDEPLOY
    extra = "lmdeploy" if "lmdeploy" in versions else "cpu"
    if gpu is not None and "lmdeploy" not in versions:
        yield MachineFinding(
            WARNING, "lmdeploy", "Not installed: the embedded engine would serve.", "pip install 'lensmith[lmdeploy]'"
        )
    for name, specifier in wanted.items():
        version = versions.get(name)
        if version is None:
            optional = name == "triton"
            change = "" if optional else f"pip install 'lensmith[{extra}]'"
            yield MachineFinding(OK if optional else WARNING, name, "Not installed.", change)
        elif version in SpecifierSet(specifier, prereleases=True):
            yield MachineFinding(OK, name, str(version))
        else:
            level = WARNING if name in ("lmdeploy", "torchvision") else ERROR
            yield MachineFinding(level, name, f"{version} does not work here.", f"pip install '{name}{specifier}'")
    peft = versions.get("peft")
    if peft is not None and "lmdeploy" in versions and peft not in SpecifierSet(PEFT_WITH_LMDEPLOY):
        change = f"LMDeploy wants peft{PEFT_WITH_LMDEPLOY} for adapters; train and serve in environments of their own."
        yield MachineFinding(WARNING, "peft", str(peft), change)
    torch, vision = versions.get("torch"), versions.get("torchvision")
    if torch is not None and vision is not None and (torch.local == "cpu") != (vision.local == "cpu"):
        what = f"torch {torch} and torchvision {vision} are builds for different machines."
        yield MachineFinding(ERROR, "torchvision", what, "Install both from the same index, CPU or CUDA.")
    build = torch_cuda()
    if torch is not None and torch in SLOW_CONVOLUTION and build is not None:
        cudnn = installed_version(f"nvidia-cudnn-cu{build[0]}")
        if torch < Version("2.9.1") or cudnn is None or cudnn < MIN_CUDNN:
            what = f"{torch} computes the vision tower's first layer 10 to 20 times slower, in twice the memory."
            yield MachineFinding(ERROR, "torch", what, "pip install 'torch>=2.10,<=2.12.1'")


def _cuda(torch: Version, gpu: Gpu) -> Iterator[MachineFinding]:
    build = torch_cuda()
    if build is None:
        change = "Install a CUDA build of PyTorch: https://pytorch.org/get-started/locally"
        yield MachineFinding(ERROR, "CUDA", f"torch {torch} is built for the CPU only.", change)
        return
    minimum = MIN_DRIVER.get(build[0])
    if minimum is not None and Version(gpu.driver) < Version(minimum):
        change = f"Update it to {minimum} or later, or install a PyTorch built for an older CUDA version."
        yield MachineFinding(
            ERROR, "driver", f"{gpu.driver} is too old for torch's CUDA {build[0]}.{build[1]}.", change
        )
    elif gpu.capability < MIN_CAPABILITY.get(build[0], (0, 0)):
        what = f"torch's CUDA {build[0]}.{build[1]} has no kernels for compute capability {gpu.capability[0]}.x."
        yield MachineFinding(ERROR, "CUDA", what, f"Install a PyTorch built for CUDA {build[0] - 1}.")
    else:
        yield MachineFinding(OK, "CUDA", f"{build[0]}.{build[1]} in torch")


def torch_cuda() -> tuple[int, int] | None:
    """The CUDA version that the installed torch was built for, read from its version.py; None for a CPU build."""
    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=\n]*= ['\"](\d+)\.(\d+)", text, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


def _compiler() -> Iterator[MachineFinding]:
    """Triton compiles a small C file for every kernel's launcher."""
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        yield MachineFinding(ERROR, "C compiler", "None; Triton needs one when its kernels first run.", "Install gcc.")
    elif not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        yield MachineFinding(ERROR, "Python.h", "Missing; Triton compiles against it.", "Install python3-dev.")


def _memory() -> MachineFinding:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return MachineFinding(OK, "memory", "Unknown on this system.")
    what = f"{free / GIB:.1f} GiB available"
    if free < MIN_FREE_MEMORY:
        return MachineFinding(WARNING, "memory", what, "An engine takes 4 to 6 GiB beside the weights it reads.")
    return MachineFinding(OK, "memory", what)


def _disk() -> MachineFinding:
    home = Path.home()
    there = next(folder for folder in (home, *home.parents) if folder.is_dir())  # containers may have no home
    free = shutil.disk_usage(there).free
    what = f"{free / GIB:.1f} GiB free at home"
    if free < MIN_FREE_DISK:
        return MachineFinding(WARNING, "disk", what, "A 2B model takes 4 GiB, PyTorch with CUDA 7 GiB.")
    return MachineFinding(OK, "disk", what)


def _port(port: int) -> MachineFinding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            what = f"{port} is in use." if taken else f"{port} cannot be listened on: {error.strerror}."
            return MachineFinding(WARNING, "port", what, "Choose another one with `lensmith serve --port`.")
    return MachineFinding(OK, "port", f"{port} is free")
