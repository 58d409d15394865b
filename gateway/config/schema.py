"""What the gateway serves, as one object: made from `gateway.yaml`, or from `lensmith serve MODEL_DIR`.

The models below are at once the check of the file, its JSON schema and its documentation. They are never on a request's
path.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    model_validator,
)

from gateway.config.settings import Settings, setting_problem


class ConfigError(Exception):
    """The configuration can't be used; the message is one sentence for the operator.

    `where` is the path to the value in the file, such as ("models", "qwen", "replicas", 0, "url").
    """

    def __init__(self, message: str, where: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.where = where


class ConfigModel(BaseModel):
    """Base of every mapping in the file: unknown keys are errors, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _relative(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    return info.context["folder"] / path if info.context else path


RelativePath = Annotated[Path, BeforeValidator(_relative)]  # relative to the file's folder


class SamplingConfig(ConfigModel):
    """What a request gets where it is silent. The ranges are those of the request's own fields."""

    temperature: float | None = Field(None, ge=0, le=2, description="Randomness; 0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1, description="Sample from the likeliest tokens of this probability.")
    top_k: int | None = Field(None, ge=-1, description="Sample from so many tokens; -1 for all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Leave out tokens below this share of the likeliest.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens that were there before.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="The same, for each time they were there.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="Above 1: against repetition.")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer in tokens.")
    seed: int | None = Field(None, description="Seed of the sampling.")


class ReplicaConfig(ConfigModel):
    """One engine that serves the model: a folder to start one with, or the URL of one that runs elsewhere."""

    folder: RelativePath | None = Field(None, description="A model folder; the gateway starts an engine for it.")
    engine: Literal["transformers", "lmdeploy", "vllm", "openai"] | None = Field(
        None,
        description="What runs the folder: transformers, lmdeploy or vllm. Unset: lmdeploy if it is installed and "
        "there is an NVIDIA GPU. With a URL: what answers there, openai for any other server. Unset: found out.",
    )
    gpus: list[int] | None = Field(None, description="The GPUs that the engine of this folder may see. Unset: all.")
    engine_args: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Options of the engine of this folder, in place of the plan's."
    )
    url: str | None = Field(None, description="Address of a running OpenAI-compatible server.")
    api_key_env: str | None = Field(None, description="Environment variable with the key that this server wants.")
    model: str | None = Field(None, description="Name by which this server knows the model. Unset: the model's own.")
    slots: int | None = Field(None, ge=1, description="Answers to hand to it at once. Unset: what suits the engine.")

    @model_validator(mode="after")
    def _one_kind(self) -> ReplicaConfig:
        if (self.folder is None) == (self.url is None):
            raise ValueError("give either 'folder' or 'url'")
        if self.folder is not None and self.engine == "openai":
            raise ValueError("'engine: openai' is for a replica with a 'url'; a folder needs transformers or lmdeploy")
        folders, urls = ("gpus", "engine_args"), ("api_key_env", "model")
        for key, belongs in (*((key, "folder") for key in folders), *((key, "url") for key in urls)):
            if getattr(self, key) not in (None, {}) and getattr(self, belongs) is None:
                raise ValueError(f"'{key}' is for a replica with a '{belongs}'")
        return self


class ModelConfig(ConfigModel):
    """A model, under the name that clients give in `model`."""

    aliases: list[str] = Field(default_factory=list, description="More names for it.")
    sampling: SamplingConfig = Field(
        SamplingConfig.model_validate({}), description="Defaults where a request is silent."
    )
    adapters: dict[str, RelativePath] = Field(
        default_factory=dict,
        description="PEFT adapters that the replicas with a folder serve beside it, each under its own model name.",
    )
    folder: RelativePath | None = Field(
        None,
        description="Its model folder, if all its engines run elsewhere: the processor says how large images are made.",
    )
    replicas: list[ReplicaConfig] = Field(min_length=1, description="The engines that serve it.")


def settings_as_plain(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, as gateway.yaml has them."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(settings).items()
    }


def _checked(setting: dataclasses.Field[Any]) -> AfterValidator:
    def check(value: Any) -> Any:
        wanted = setting_problem(setting, tuple(value) if isinstance(value, list) else value)
        if wanted:
            raise ValueError(f"'{setting.name}' must be {wanted}")
        return value

    return AfterValidator(check)


def _settings_model() -> type[ConfigModel]:
    """The table in settings.py as a mapping of the file."""
    fields: dict[str, Any] = {}
    for setting in dataclasses.fields(Settings):
        default, about = setting.default, {"description": setting.metadata["help"]}
        if isinstance(default, tuple):
            fields[setting.name] = (Annotated[list[str], _checked(setting)], Field(list(default), **about))
        elif isinstance(default, int):
            fields[setting.name] = (int, Field(default, ge=setting.metadata["minimum"], **about))
        else:
            fields[setting.name] = (Annotated[float, _checked(setting)], Field(default, gt=0, **about))
    made: type[ConfigModel] = create_model("SettingsConfig", __base__=ConfigModel, __doc__="Limits.", **fields)
    return made


SettingsConfig = _settings_model()


class Config(ConfigModel):
    """The whole file."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 is every one.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    management_port: int | None = Field(
        None, ge=0, le=65535, description="Port for /metrics and all of /ready, then nowhere else; it asks for no key."
    )
    workers: int = Field(
        1, ge=1, le=64, description="Gateway processes that share the port, the limits and the engines."
    )
    keys: RelativePath | None = Field(None, description="File of the API keys that clients need; see `lensmith keys`.")
    redis: str | None = Field(
        None, description="URL of a Redis that keeps the keys' limits, so that several gateways share them."
    )
    settings: SettingsConfig = Field(SettingsConfig.model_validate({}), description="Limits.")  # type: ignore[valid-type]
    models: dict[str, ModelConfig] = Field(min_length=1, description="The models, by name.")

    @property
    def limits(self) -> Settings:
        given: dict[str, Any] = self.settings.model_dump()  # type: ignore[attr-defined]
        lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        return Settings(**{**given, **lists})

    def changed(self, parts: dict[str, Any], settings: dict[str, Any]) -> Config:
        """The same with other values, of `host` and the like and of the settings."""
        limits = dataclasses.replace(self.limits, **settings)
        return self.model_copy(update={**parts, "settings": SettingsConfig.model_validate(settings_as_plain(limits))})
