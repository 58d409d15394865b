"""What keeps a model folder from being served, by each server that might; nothing is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.planning.doctor.folder import check_folder_for_lmdeploy
from gateway.planning.gpu import CARDS, Gpu, NoGpu, parse_gpu, query_gpus
from gateway.planning.other_servers import serve_command
from gateway.planning.plan import make_engine_plan
from gateway.planning.types import EnginePlan, Workload
from modelfiles.checks.doctor import check_folder
from modelfiles.checks.rules import RULES, is_repaired
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from studio.errors import StudioError
from studio.workspace.sources import Source

SERVERS = ("lmdeploy", "ollama", "llamacpp")
OK, WARNING, ERROR = "ok", "warning", "error"
CARD_NAMES = tuple(CARDS)


@dataclass(frozen=True)
class Remark:
    """level: ok, warning or error; change: what to do about it."""

    level: str
    subject: str
    what: str
    change: str = ""


@dataclass(frozen=True)
class Verdict:
    """One server's: the worst level of its remarks, and the command that serves the folder with it ("" for none)."""

    server: str
    remarks: tuple[Remark, ...]
    command: str

    @property
    def level(self) -> str:
        return max((remark.level for remark in self.remarks), key=(OK, WARNING, ERROR).index, default=OK)


def verdicts(source: Source, card: Gpu | None) -> list[Verdict]:
    """Every server's verdict about a model folder; `card` is the GPU that it is for."""
    return [Verdict(server, tuple(_remarks(source, server, card)), _command(source, server)) for server in SERVERS]


def this_or(text: str) -> Gpu:
    """The card of this name or of so many GiB; this machine's for "". Raises StudioError."""
    try:
        return parse_gpu(text) if text else query_gpus()[0]
    except NoGpu:
        raise StudioError("serve.name_card") from None
    except ValueError as error:
        raise StudioError(f"{error}.") from None


def plan(source: Source, card: Gpu, images: int, side: int, concurrency: int | None) -> EnginePlan:
    """LMDeploy's plan for requests of so many square pictures. Raises StudioError."""
    if not 0 <= images <= 1000 or not 1 <= side <= 16384 or (concurrency is not None and not 1 <= concurrency <= 4096):
        raise StudioError("errors.parameters", name="images")
    try:
        return make_engine_plan(ModelFolder.open(source.base), card, Workload(images, (side, side), concurrency))
    except ValueError as error:
        raise StudioError(str(error)) from None


def _remarks(source: Source, server: str, card: Gpu | None) -> list[Remark]:
    if server == "lmdeploy":
        found = check_folder_for_lmdeploy(source.base, card)
        return [Remark(remark.level, remark.subject, remark.what, remark.change) for remark in found]
    findings = check_folder(source.base, "safetensors" if server == "ollama" else "gguf")
    remarks = []
    for finding in findings:
        repaired = is_repaired(finding.rule)  # `modelfile install` does it by itself
        remarks.append(
            Remark(OK if repaired else finding.severity, finding.rule, finding.message, RULES[finding.rule].fix)
        )
    return remarks


def _command(source: Source, server: str) -> str:
    names = {"ollama": "ollama", "llamacpp": "llama-server"}
    try:
        if server == "lmdeploy":
            return f"lensmith serve {source.base} --engine lmdeploy"
        return serve_command(ModelFolder.open(source.base), names[server], Workload(), source.base)
    except (ModelFolderError, ValueError):
        return ""
