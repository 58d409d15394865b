"""What engines are, as data: how each is started, how it is asked for its health, which fields it does not honour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.engines.extra_fields import LMDEPLOY_FIELDS, STEERING, VLLM_FIELDS, ExtraField
from gateway.engines.startup.lmdeploy_log import LMDEPLOY_LOG
from gateway.engines.startup.log import EngineLog
from gateway.engines.startup.vllm_log import VLLM_LOG
from modelfiles.hardware.python_child import module_command


@dataclass(frozen=True)
class EngineSpec:
    """One row of the table below.

    `command` is filled in with {python}, {folder}, {name} and {port}, the values of `environment` with {key}. `refused`
    maps a request field that the engine drops or gets wrong to the reason the client is told.
    """

    name: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()  # what must be importable, and which extra brings it
    extra: str = ""
    health_path: str = "/health"
    start_seconds: float = 600.0
    needs_gpu: bool = False
    planned: bool = (
        False  # its flags come from gateway/planning/plan.py, and it answers a test picture before it is ready
    )
    log: EngineLog = EngineLog()  # noqa: RUF009, frozen
    slots: int = 128  # answers to hand to it at once
    refused: Mapping[str, str] = field(default_factory=dict)
    # False: the chat templates of its models know one system message, at the beginning, and leave out later ones and
    # developers'. The gateway makes one of all of them.
    developer_role: bool = True
    continues_answer: bool = True  # of a last message that is an assistant's; False: the gateway refuses it
    continue_fields: Mapping[str, bool] = field(default_factory=dict)  # what it must be told for it
    negative_top_k: bool = True  # -1 means all tokens; False: it is refused there, and the gateway sends 0
    drops_stop: bool = False  # it drops stop strings longer than one token: the gateway cuts the text
    forces_named_tool: bool = True  # False: of a function that must be called it only hides the others
    # False: the arguments of a call that must be made may be any JSON, a string or a list too, unless the function is
    # `strict`. The gateway makes it so.
    pins_arguments: bool = True
    greedy_choices: bool = True  # False: it refuses several choices at temperature 0; the gateway sends top_k 1 instead
    abort_path: str = ""  # its route that ends an answer early, by the request's `session_id`, and tells its usage
    raw_tokens: bool = False  # its log-probabilities spell tokens as its vocabulary: the gateway makes text of them
    byte_level: bool = True  # and that vocabulary is byte-level BPE's, else SentencePiece's
    refused_in_text: Mapping[str, str] = field(default_factory=dict)  # the same for /v1/completions, beside `refused`
    tokenize_path: str = ""  # its route that tokenises chats and texts alike, if there is one
    encode_path: str = ""  # its route that tokenises texts only
    # Fields beyond OpenAI's that clients may send. None: the engine is not known and must refuse others itself.
    extra_fields: Mapping[str, ExtraField] | None = None
    max_pixels: int = 0  # that a request may ask for an image to be shrunk to; 0: it may not ask

    def argv(self, *, python: str, folder: Path, name: str, port: int) -> list[str]:
        values = {"python": python, "folder": str(folder), "name": name, "port": str(port)}
        return [part.format_map(values) for part in self.command]

    def child_environment(self, key: str) -> dict[str, str]:
        return {variable: value.format_map({"key": key}) for variable, value in self.environment.items()}


TRANSFORMERS = EngineSpec(
    name="transformers",
    # Our own server around `generate`. It refuses by itself what it cannot do.
    command=(
        *(*module_command("gateway.embedded", "{python}"), "{folder}", "--host", "127.0.0.1", "--port", "{port}"),
        *("--served-model-name", "{name}"),
    ),
    environment={"LENSMITH_ENGINE_KEY": "{key}"},
    slots=16,  # two of its batches: the next one is complete when one ends
    modules=("torch", "transformers", "llguidance"),
    extra="cpu",
    tokenize_path="tokenize",
    continues_answer=False,
    developer_role=False,
    extra_fields={},
)

LMDEPLOY = EngineSpec(
    name="lmdeploy",
    # LMDeploy 0.18; what depends on the model and the card is in the plan. At INFO it logs how far it has come, and
    # no prompts.
    command=(
        *(*module_command("gateway.engines.startup.lmdeploy_main", "{python}"), "serve", "api_server", "{folder}"),
        *("--server-name", "127.0.0.1", "--server-port", "{port}", "--model-name", "{name}"),
        *("--disable-fastapi-docs", "--log-level", "INFO"),
    ),
    # Its access log would hold a line for every health probe.
    environment={"LENSMITH_ENGINE_KEY": "{key}", "UVICORN_LOG_LEVEL": "warning"},
    planned=True,
    slots=128,  # the plan's batch replaces it: beyond its batch LMDeploy queues without bound and holds every image
    modules=("lmdeploy",),
    extra="lmdeploy",
    needs_gpu=True,
    log=LMDEPLOY_LOG,
    refused={
        "presence_penalty": "the LMDeploy engine ignores it; use 'repetition_penalty'",
        "frequency_penalty": "the LMDeploy engine ignores it; use 'repetition_penalty'",
        "tools": "the LMDeploy engine was started without --tool-call-parser",
        "reasoning_effort": "the LMDeploy engine hands it to the chat template, and those of these models ignore it",
    },
    developer_role=False,
    negative_top_k=False,
    drops_stop=True,
    forces_named_tool=False,
    abort_path="abort_request",
    raw_tokens=True,
    refused_in_text={
        "n": "the LMDeploy engine gives one answer to a text completion",
        "logprobs": "the LMDeploy engine drops it in text completions",
        "logit_bias": "the LMDeploy engine drops it in text completions",
    },
    encode_path="v1/encode",
    extra_fields=LMDEPLOY_FIELDS,
)

VLLM = EngineSpec(
    name="vllm",
    # vLLM 0.33, whose flags here 0.25 has, too; what depends on the model and the card is in the plan. At INFO it logs
    # how far it has come, and no prompts.
    command=(
        *(*module_command("vllm.entrypoints.cli.main", "{python}"), "serve", "{folder}"),
        *("--host", "127.0.0.1", "--port", "{port}", "--served-model-name", "{name}"),
        *("--disable-uvicorn-access-log", "--disable-fastapi-docs"),
    ),
    environment={"VLLM_API_KEY": "{key}", "VLLM_NO_USAGE_STATS": "1"},
    planned=True,
    modules=("vllm",),
    needs_gpu=True,
    log=VLLM_LOG,
    refused={
        "tools": "the vLLM engine was started without --tool-call-parser",
        "reasoning_effort": "the vLLM engine hands it to the chat template, and those of these models ignore it",
    },
    developer_role=False,
    pins_arguments=False,
    greedy_choices=False,
    continue_fields={"continue_final_message": True, "add_generation_prompt": False},
    tokenize_path="tokenize",
    extra_fields=VLLM_FIELDS,
)

# Any OpenAI-compatible server that is already running: what it cannot do, it must say itself.
OPENAI = EngineSpec(name="openai", health_path="/v1/models", refused=STEERING)

LAUNCHED = {spec.name: spec for spec in (TRANSFORMERS, LMDEPLOY, VLLM)}
# Engines that may be reached at a URL.
AT_URL = {spec.name: spec for spec in (TRANSFORMERS, LMDEPLOY, VLLM, OPENAI)}
