"""`lensmith modelfile install`: from a model folder to a model in Ollama whose answers are measured."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click

from modelfiles import counted
from modelfiles.cli.generate import print_summary
from modelfiles.cli.options import IMAGES, SIZE, check_new_name
from modelfiles.cli.server import (
    DATA,
    FAULTS,
    LIMIT,
    REFERENCE,
    SERVER,
    push_with_progress,
    read_stage,
    run_checks,
)  # fmt: skip
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.language.grammar import UnrepresentableError
from modelfiles.ollama.plan import PROMPTS, ModelfilePlanError, Options, make_modelfile_plan
from modelfiles.server.client import OllamaClient
from modelfiles.staging.stage import stage_option, write_stage


@click.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option("--name", required=True, callback=check_new_name, help="The model's name in Ollama.")
@SERVER
@DATA
@LIMIT
@REFERENCE
@click.option(
    "--prompt", type=click.Choice(PROMPTS), default="auto", help="Who makes the prompt: TEMPLATE or RENDERER."
)
@IMAGES
@SIZE
@click.option("--quantize", default="", help="F32, F16, Q4_K_S, Q4_K_M or Q8_0.")
def install(
    model_dir: Path,
    name: str,
    server: str,
    data: Path | None,
    limit: int,
    reference: str,
    prompt: str,
    images_per_request: int,
    image_size: tuple[int, int],
    quantize: str,
) -> None:
    """Put MODEL_DIR into an Ollama server and prove it: generate, push, verify, and with --data its answers.

    Exits with 1 if a check fails or the answers are significantly worse than the reference's.
    """
    try:
        client = OllamaClient(server)
        options = Options("", prompt, client.version(), images_per_request, image_size, None, quantize)
        folder = ModelFolder.open(model_dir)
        plan = make_modelfile_plan(folder, options)
        if plan.route != "safetensors":
            raise click.ClickException(
                f"Ollama takes {folder.architecture} as GGUF only; use `lensmith modelfile generate --route gguf` and "
                "`lensmith modelfile push`."
            )
        # Beside the model, so that weights can be hard links; elsewhere they are copied.
        beside = folder.path.parent if os.access(folder.path.parent, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix=".lensmith-install-", dir=beside) as work:
            stage = write_stage(plan, Path(work) / folder.name)
            print_summary(plan)
            push_with_progress(client, name, read_stage(stage), stage, stage_option(stage, "quantize").upper())
            checks = run_checks(client, name, stage, data, limit, reference)
    except (*FAULTS, ModelfilePlanError, ModelFolderError, UnrepresentableError) as error:
        raise click.ClickException(str(error)) from None
    failed = [check.name for check in checks if not check.ok]
    if failed:
        click.echo(
            f"{name} is installed, but {len(failed)} of {counted(len(checks), 'check fails', 'checks fail')}: "
            f"{', '.join(failed)}"
        )
        sys.exit(1)
    click.echo(
        f"{name} is installed, {counted(len(checks), 'check passed', 'checks passed')}; "
        f'try: ollama run {name} "..." ./picture.png'
    )
