"""The `lensmith` command: one door to training, serving and Modelfiles.

Every subcommand is imported only when it runs, so `lensmith --help` is instant and the gateway never imports torch.
"""

from __future__ import annotations

import importlib

import click

__version__ = "0.1.0"

# Command name -> (module:attribute of the click command, one line of help).
COMMANDS = {
    "train": ("finetune.cli:train", "Fine-tune a model as a recipe says."),
    "eval": ("finetune.cli:evaluate", "Answer a dataset greedily and score the answers."),
    "export": ("finetune.cli:export", "Merge an adapter into its base: a model folder that servers load."),
    "serve": ("gateway.cli:serve", "Serve a model folder, or an engine's URL, behind an OpenAI-compatible API."),
    "keys": ("gateway.keys_cli:keys", "Make, list and revoke the API keys that clients of `serve` need."),
    "modelfile": ("modelfiles.cli:modelfile", "Make and check Ollama Modelfiles for a model folder."),
    "demo": ("examples.demo:demo", "Run the whole line on a public dataset: train, merge, serve, ask."),
}


class LazyGroup(click.Group):
    """A click group whose subcommands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])


@click.group(cls=LazyGroup)
@click.version_option(__version__, prog_name="lensmith")
def main() -> None:
    """From labelled images to an answering API: fine-tune, merge, serve, register in Ollama."""


if __name__ == "__main__":
    main()
