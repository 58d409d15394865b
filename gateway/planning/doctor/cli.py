"""`lensmith doctor`: what keeps a model from being served here, and what to do about it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.planning.doctor.folder import check_folder_for_lmdeploy
from gateway.planning.doctor.machine import ERROR, OK, WARNING, MachineFinding, check_machine
from gateway.planning.gpu import Gpu, NoGpu, query_gpus
from modelfiles.checks.doctor import check_folder as check_for_ollama
from modelfiles.checks.rules import RULES, is_repaired

STYLES = {OK: "green", WARNING: "yellow", ERROR: "bold red"}


@click.command()
@click.argument("model_dir", required=False, type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="The gateway's port.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings for programs.")
def doctor(model_dir: Path | None, port: int, as_json: bool) -> None:
    """Say what keeps models from being served on this machine, and what to do about it.

    With MODEL_DIR also what LMDeploy and Ollama would make of it. Exits with 0, 1 (warnings) or 2 (errors).
    """
    findings = check_machine(port)
    if model_dir is not None:
        found_in_folder = check_folder_for_lmdeploy(model_dir, first_gpu())
        findings += found_in_folder
        if found_in_folder[0].level == OK:
            findings += for_ollama(model_dir)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        table = Table(show_header=False, box=None)
        for found in findings:
            text = Text(found.what)
            if found.change:
                text.append(f" {found.change}", style="" if found.level == OK else "bold")
            table.add_row(Text(found.level, style=STYLES[found.level]), found.subject, text)
        Console(highlight=False).print(table)
    levels = {found.level for found in findings}
    raise SystemExit(2 if ERROR in levels else 1 if WARNING in levels else 0)


def first_gpu() -> Gpu | None:
    try:
        return query_gpus()[0]
    except NoGpu:
        return None


def for_ollama(model_dir: Path) -> list[MachineFinding]:
    """What `lensmith modelfile generate` cannot repair. It does not keep the gateway from serving: warnings."""
    found = [finding for finding in check_for_ollama(model_dir) if not is_repaired(finding.rule)]
    return [
        MachineFinding(WARNING, f"Ollama {finding.rule}", f"{finding.message.rstrip('.')}.", RULES[finding.rule].fix)
        for finding in found
    ]
