"""`lensmith modelfile generate`: writes a stage folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from modelfiles import counted
from modelfiles.checks.image_rules import folder_image_findings, fused_findings
from modelfiles.cli.options import IMAGES, SIZE, VERSION, read_system
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError
from modelfiles.language.grammar import UnrepresentableError
from modelfiles.ollama.names import suggest_ollama_name
from modelfiles.ollama.plan import PROMPTS, ROUTES, ModelfilePlan, ModelfilePlanError, Options, make_modelfile_plan
from modelfiles.ollama.versions import Version
from modelfiles.staging.gguf import can_try, open_adapter, try_pair
from modelfiles.staging.stage import SCRIPT, stage_option, write_stage


@click.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="The stage folder to write."
)
@click.option(
    "--prompt", type=click.Choice(PROMPTS), default="auto", help="Who makes the prompt: TEMPLATE or RENDERER."
)
@VERSION
@IMAGES
@SIZE
@click.option(
    "--system-file", type=click.Path(path_type=Path), help="A text file that becomes the default system prompt."
)
@click.option("--route", type=click.Choice(ROUTES), help="How the weights get into Ollama.")
@click.option("--quantize", default="", help="F32, F16, Q4_K_S, Q4_K_M or Q8_0.")
@click.option("--llama-cpp", type=click.Path(path_type=Path), help="A llama.cpp checkout whose converter to run.")
@click.option("--python", default="", help="The Python that runs the converter.  [default: this one]")
@click.option("--base", default="", help="Ollama's name of the base model (for --route adapter-gguf).")
def generate(
    model_dir: Path,
    out: Path,
    prompt: str,
    ollama: Version,
    images_per_request: int,
    image_size: tuple[int, int],
    system_file: Path | None,
    route: str | None,
    quantize: str,
    llama_cpp: Path | None,
    python: str,
    base: str,
) -> None:
    """Write a stage folder that `ollama create` accepts; MODEL_DIR itself is never changed."""
    try:
        system = read_system(system_file) if system_file else None
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"--system-file {system_file} cannot be read as UTF-8 text: {error}.") from None
    if llama_cpp and route not in ("gguf", "adapter-gguf"):
        raise click.UsageError("--llama-cpp is for --route gguf and --route adapter-gguf.")
    options = Options(route or "", prompt, ollama, images_per_request, image_size, system, quantize, base)
    try:
        folder = open_adapter(model_dir) if route == "adapter-gguf" else ModelFolder.open(model_dir)
        plan = make_modelfile_plan(folder, options)
        write_stage(plan, out, llama_cpp, model_dir, python)
    except (ModelFolderError, ModelfilePlanError, UnrepresentableError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{out}: {plan.architecture.name} by {plan.route}, {counted(len(plan.changes), 'key')} repaired")
    print_summary(plan)
    _print_next_steps(plan, out, model_dir)
    if plan.route == "gguf" and llama_cpp:
        _try(out)


def print_summary(plan: ModelfilePlan) -> None:
    """The prompt's fidelity, the memory it takes, and every warning."""
    equal = sum(plan.prompt_equal.values())
    if plan.prompt_equal:
        click.echo(f"prompt: equals the chat template in {equal} of {len(plan.prompt_equal)} test conversations")
    click.echo(f"num_ctx {plan.num_ctx}: about {plan.kv_cache_bytes / 2**20:,.0f} MiB of key and value cache")
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)
    options = plan.options
    for finding in (
        *folder_image_findings(plan.folder, plan.architecture, options.ollama),
        *fused_findings(plan.architecture.resized_by_ollama, options.images_per_request, options.ollama),
    ):
        click.echo(str(finding), err=True)


def _print_next_steps(plan: ModelfilePlan, out: Path, model_dir: Path) -> None:
    if (out / SCRIPT).exists():
        click.echo(f"next: LLAMA_CPP=/path/to/llama.cpp sh {out / SCRIPT}")
    kind = stage_option(out, "quantize")
    quantize = f" -q {kind}" if kind else ""
    # An adapter's model must not take the name of its base.
    named = model_dir.resolve().name if plan.route == "adapter-gguf" else plan.folder.name
    name = suggest_ollama_name(named)
    name = f"{name}-tuned" if name == plan.options.base else name
    click.echo(f"\n  cd {shlex.quote(str(out))} && ollama create {name} -f Modelfile{quantize}")
    click.echo(f'  ollama run {name} "What is in this picture?" ./picture.png')


def _try(out: Path) -> None:
    if not can_try():
        click.echo("install xllamacpp to have the GGUF pair tried in llama.cpp")
        return
    sees, seen = try_pair(out / "model.gguf", out / "mmproj.gguf")
    if not sees:
        raise click.ClickException(f"the GGUF pair does not see: {seen}.")
    click.echo(f"llama.cpp ran the pair and an image changes the answer ({seen})")
