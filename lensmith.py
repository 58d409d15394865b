"""The `lensmith` command: one door to training, serving and Modelfiles.

Every subcommand is imported only when it runs, so `lensmith --help` is instant and the gateway never imports torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__" and Path(sys.path[0]) == Path.cwd() != Path(__file__).resolve().parent:
    # `torchrun -m lensmith` looks for modules in the current folder first, where somebody's own finetune.py may lie.
    del sys.path[0]

import getpass

import click

from modelfiles.cli.lazy_group import LazyGroup
from modelfiles.version import lensmith_version

# Command name -> (module:attribute of the click command, the extra it needs, one line of help).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": ("finetune.cli:init", "finetune", "Write a recipe for a data file or folder."),
    "train": ("finetune.cli:train", "finetune", "Fine-tune a model as a recipe says."),
    "check": ("finetune.cli:check", "finetune", "Say what a training run would do, before it costs anything."),
    "eval": ("finetune.cli:evaluate", "finetune", "Answer a dataset greedily and score the answers."),
    "export": ("finetune.cli:export", "finetune", "Merge an adapter into its base: a model folder that servers load."),
    "serve": ("gateway.cli:serve", "cpu", "Serve a model folder, or an engine's URL, behind an OpenAI-compatible API."),
    "chat": ("gateway.chat.cli:chat", "cpu", "Talk to a model, an adapter or a server in the terminal, with pictures."),
    "plan": ("gateway.planning.cli:plan", "cpu", "Say how an engine would be started on a GPU, and what fits."),
    "doctor": ("gateway.planning.doctor.cli:doctor", "cpu", "Say what keeps models from being served on this machine."),
    "keys": ("gateway.tenants.cli:keys", "cpu", "Make and list the API keys that `serve --keys` asks for."),
    "verify": ("gateway.verify.cli:verify", "cpu", "Prove that an engine answers as transformers does."),
    "bench": ("gateway.bench.cli:bench", "finetune", "Put load on an OpenAI-compatible endpoint and measure it."),
    "studio": ("studio.cli:studio", "studio", "Open the browser pages: data, training, evaluation, chat, serving."),
    "modelfile": ("modelfiles.cli.group:modelfile", "cpu", "Make and check Ollama Modelfiles for a model folder."),
    "env": ("finetune.cli:env", "cpu", "Print versions and the machine, for a bug report."),
    "demo": ("examples.demo:demo", "demo", "Run the whole line on a public dataset: train, merge, serve, ask."),
}


class Commands(LazyGroup):
    """The table above as a group; a package that is missing is named with the extra that brings it."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            return super().get_command(ctx, cmd_name)
        except ModuleNotFoundError as error:
            raise missing_package(cmd_name, error) from None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise missing_package(ctx.invoked_subcommand or "", error) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, _, help_line) in COMMANDS.items()])


def missing_package(command: str, error: ModuleNotFoundError) -> Exception:
    """One sentence that names the extra to install; the error itself if it is about a module of ours."""
    name = (error.name or "").split(".")[0]
    if name == "examples":
        return click.ClickException("The demo is part of the repository: clone it and run `make demo` there.")
    if error.name == "studio":
        return click.ClickException("The studio is not in this installation: pip install 'lensmith[studio]' brings it.")
    if command not in COMMANDS or name in ("finetune", "gateway", "modelfiles", "studio"):
        return error
    extra = COMMANDS[command][1]
    return click.ClickException(f"`lensmith {command}` needs the package {name}: pip install 'lensmith[{extra}]'")


@click.group(cls=Commands, locations={name: place for name, (place, _, _) in COMMANDS.items()})
@click.version_option(lensmith_version(), prog_name="lensmith")
def main() -> None:
    """From labelled images to an answering API: fine-tune, merge, serve, register in Ollama."""
    name_user()


def name_user() -> None:
    """A user id without a name, as containers have, gets its number as the name, and / as its home as Docker does it.

    Without them PyTorch and others fail when they look for their caches.
    """
    try:
        getpass.getuser()
        Path.home()
    except (KeyError, OSError, RuntimeError):
        os.environ.setdefault("USER", str(os.getuid()))
        os.environ.setdefault("HOME", "/")


if __name__ == "__main__":
    main()
