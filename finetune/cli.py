"""The commands `lensmith init`, `check`, `train`, `eval`, `export` and `env`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from finetune.errors import FinetuneError
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe
from modelfiles import counted


def _load(recipe: str, overrides: tuple[str, ...]) -> Recipe:
    loaded = load_recipe(recipe, overrides)
    for warning in loaded.warnings if _speaks() else ():
        click.secho(f"Warning: {warning}", fg="yellow", err=True)
    return loaded


def _speaks() -> bool:
    """Whether this is the process that prints: of those that torchrun started, the first."""
    return os.environ.get("RANK", "0") == "0"


DEFAULT_MODEL = "Qwen/Qwen3-VL-2B-Instruct"


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", help=f"The base: a folder or a hub's id. Asked for; else {DEFAULT_MODEL}.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("recipe.yaml"),
    show_default=True,
    help="The recipe to write.",
)
def init(data: Path, model: str | None, out: Path) -> None:
    """Write a recipe for DATA, a data file or a folder, and its entry in dataset_info.json.

    Every line of the recipe says why it is as it is; `lensmith check` then says what training would do.
    """
    from finetune.memory.cards import this_card
    from finetune.preflight.starter import write_starter

    if model is None:
        model = click.prompt("Base model", default=DEFAULT_MODEL) if sys.stdin.isatty() else DEFAULT_MODEL
    starter = write_starter(data, str(model), out, this_card())
    for choice in starter.choices:
        value = "unset" if choice.value is None else str(choice.value)
        click.echo(f"{choice.key}: {value}  {click.style(choice.why, dim=True)}")
    if starter.broken:
        click.secho(
            f"Warning: {counted(starter.broken, 'row')} cannot be read; `lensmith check` names them.",
            fg="yellow",
            err=True,
        )
    click.echo(f"{starter.recipe} and {starter.info} are written. Next: lensmith check {starter.recipe}")


@click.command()
def env() -> None:
    """Print versions and the machine, for a bug report. Nothing secret is in it."""
    from finetune.preflight.environment import describe_environment

    for name, value in describe_environment().items():
        click.echo(f"{name:16} {value}")


@click.command()
@click.argument("recipe", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def train(recipe: str, overrides: tuple[str, ...]) -> None:
    """Fine-tune a model as RECIPE says; KEY=VALUE changes a key of it.

    On several GPUs: torchrun --nproc-per-node GPUS -m lensmith train RECIPE
    """
    loaded = _load(recipe, overrides)
    from finetune.training.loop import train as run

    result = run(loaded)
    if result.interrupted is not None:
        if _speaks():
            click.echo(f"Stopped at step {result.steps} of {result.total_steps}; the same command goes on from there.")
        sys.exit(128 + result.interrupted)
    if _speaks():
        from finetune.reporting.training_report import next_commands

        validated = "" if result.eval_loss is None else f", validation loss {result.eval_loss:.4f}"
        if result.best_step is not None:
            validated += f" (lowest after step {result.best_step})"
        click.echo(
            f"{result.output_dir}: {counted(result.steps, 'step')} in {result.seconds:.0f} s "
            f"({result.samples_per_second:.1f} samples/s), loss {result.loss:.4f}{validated}"
        )
        click.echo(f"Curve and answers: {Path(result.output_dir) / 'report.html'}")
        click.echo(f"Next: {next_commands(Path(result.output_dir), loaded)[0]}")


@click.command()
@click.argument("recipe", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--gpu", metavar="CARD", help="The GPU it is for: t4, l4, a10, a100-40, a100, h100, h200, or its GiB.")
@click.option("--measure/--no-measure", default=None, help="Train a few steps to tell the time; default: on a GPU.")
@click.option("--price", type=float, metavar="N", help="What an hour costs, to tell the cost.")
@click.option("--decode", is_flag=True, help="Read the pixels of all images and videos too, and name broken ones.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write what was found to this file too.")
def check(
    recipe: str, overrides: tuple[str, ...], gpu: str | None, measure: bool | None, price: float | None, decode: bool,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Read everything that RECIPE's training would read and say whether it would start.

    No image is decoded without --decode. The exit code is 1 if training would not start or its memory not suffice.
    """
    loaded = _load(recipe, overrides)
    from finetune.memory.cards import find_card, this_card
    from finetune.preflight.check import check_recipe as run
    from finetune.preflight.report import Report

    here = this_card()
    card = find_card(gpu) if gpu else here
    wanted = measure if measure is not None else here is not None and gpu is None
    report = Report(Console(soft_wrap=True))
    starts = run(loaded, report, card=card, measured=wanted, price=price, decoded=decode)
    if json_file is not None:
        report.write_json(json_file)
    sys.exit(0 if starts else 1)


@click.command(name="eval")
@click.argument("recipe", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--against", metavar="FOLDER", help="Compare with an earlier run's predictions, pair by pair.")
@click.option(
    "--endpoint", metavar="URL", help="Score what this OpenAI API serves (http://host:port/v1); key: OPENAI_API_KEY."
)
@click.option(
    "--engine",
    type=click.Choice(["lmdeploy", "transformers", "vllm"]),
    help="Let this engine answer: it is started on the merged model, asked many questions at once, and ended.",
)
def evaluate(
    recipe: str, overrides: tuple[str, ...], against: str | None, endpoint: str | None, engine: str | None
) -> None:
    """Answer RECIPE's eval_dataset greedily and score the answers."""
    if endpoint and engine:
        raise click.UsageError("Give --endpoint for a server that is running, or --engine to start one, not both.")
    loaded = _load(recipe, overrides)
    if loaded.stage == "dpo":
        _evaluate_preferences(loaded, against, endpoint, engine)
        return
    from finetune.evaluation.evaluate import compare_runs
    from finetune.evaluation.evaluate import evaluate as run
    from finetune.evaluation.predictions import read_predictions
    from finetune.reporting.comparison import hundredths, write_evaluation

    if against:  # before hours of answers
        read_predictions(Path(against))
    chosen = None
    if engine:
        from finetune.export.merge import merge

        chosen = (engine, merge)
    result = run(loaded, endpoint=endpoint, engine=chosen)
    rows = []
    for name, score in result.scores.items():
        mean, low, high = hundredths(name, score.mean, score.low, score.high)
        click.echo(f"{name:12} {mean:6.2f}  (95 % interval {low:.2f} to {high:.2f})")
        rows.append([name, f"{mean:.2f}", f"{low:.2f} to {high:.2f}"])
    click.echo(f"{counted(result.n, 'answer')}, {result.answers_per_second:.1f} a second: {result.predictions}")
    predictions = Path(result.predictions)
    records = read_predictions(predictions)
    report = write_evaluation(predictions.with_name("report.html"), predictions.resolve().parent.name, records, rows)
    click.echo(f"Scores and answers: {report}")
    if against:
        page = Path(result.predictions).with_name("comparison.html")
        compared = compare_runs(Path(result.predictions), Path(against), page)
        click.echo(f"Against {against}, side by side in {page}:")
        for name, difference in compared.difference.items():
            values = hundredths(name, difference.mean, difference.low, difference.high)
            click.echo(
                f"{name:12} {values[0]:+6.2f}  (95 % interval {values[1]:+.2f} to {values[2]:+.2f}, "
                f"p = {compared.p[name]:.4f})"
            )


def _evaluate_preferences(recipe: Recipe, against: str | None, endpoint: str | None, engine: str | None) -> None:
    if against or endpoint or engine:
        raise FinetuneError("With stage: dpo, eval compares answers here: leave --against, --endpoint, --engine out.")
    from finetune.evaluation.preferences import evaluate_preferences

    result = evaluate_preferences(recipe)
    for name, score in {"accuracy": result.accuracy, "margin": result.margin, "likelier": result.likelier}.items():
        scale = 1 if name == "margin" else 100
        values = [scale * value for value in (score.mean, score.low, score.high)]
        click.echo(f"{name:12} {values[0]:6.2f}  (95 % interval {values[1]:.2f} to {values[2]:.2f})")
    click.echo(f"{counted(result.n, 'pair')}: {result.pairs}")


@click.command()
@click.argument("recipe", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--merge-base",
    type=click.Choice(["original", "dequantized"]),
    default="original",
    show_default=True,
    help="After QLoRA: merge into the base's weights, or into what their 4-bit copies hold.",
)
def export(recipe: str, overrides: tuple[str, ...], merge_base: str) -> None:
    """Merge what RECIPE's training changed into its base: a model folder that servers load.

    With an eval_dataset, after QLoRA, the validation losses of both merge bases are printed.
    """
    loaded = _load(recipe, overrides)
    from finetune.export.merge import merge as run

    click.echo(str(run(loaded, merge_base=merge_base)))
