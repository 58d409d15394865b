"""The HTML that the report pages share. Everything from outside is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune.data.row_media import Video
from finetune.errors import FinetuneError
from finetune.media.image_files import decode
from finetune.media.videos import first_frame

THUMBNAIL = (160, 160)
PACKAGES = ("lensmith", "torch", "transformers", "peft")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; vertical-align: top }
th { font-weight: 600 } td.number { text-align: right; font-variant-numeric: tabular-nums }
td:last-child { overflow-wrap: anywhere } .answers td { overflow-wrap: break-word }
img { max-width: 100% } .right { color: #116329 } .wrong { color: #a40e26 }
pre { background: #f6f8fa; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere }
footer { color: #666; margin-top: 2rem }
@media (max-width: 40rem) { body { margin: 1rem auto } td, th { padding: .35rem .3rem }
  .answers, .answers tbody, .answers tr, .answers td { display: block } .answers tr:first-child { display: none }
  .answers tr { border-bottom: 1px solid #ddd; padding: .6rem 0 } .answers td { border: 0; padding: .1rem 0 }
  .answers td[data-head]::before { content: attr(data-head) ": "; color: #666 } }
"""


def render_page(title: str, body: str) -> str:
    """A whole page, which says when it was made and by which versions."""
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}"
        f"<footer>Made {made} by {escape(versions)}.</footer></body></html>\n"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts. head: may be empty."""
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{cells}</tr>' if head else ''}{lines}</table>"


def render_answers(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of questions and answers, images in its first column; on a phone the cells of a row below each other.

    head: texts; rows: HTML.
    """
    marks = ["", *(f' data-head="{escape(name)}"' for name in head[1:])]
    lines = ["".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row, strict=True)) for row in rows]
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<table class="answers"><tr>{cells}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def format_number(value: Any) -> str:
    """A number as a reader wants it: four digits of a fraction, thousands apart."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def is_right(text: str, label: str) -> bool:
    return text.strip().casefold() == label.strip().casefold()


def render_answer(text: str, label: str) -> str:
    return f'<span class="{"right" if is_right(text, label) else "wrong"}">{escape(text)}</span>'


def thumbnail(medium: Path | str | Video) -> str:
    """An image, or a video's first frame, as an <img>."""
    file = medium.files[0] if isinstance(medium, Video) else medium
    name = file.name if isinstance(file, Path) else "image"
    try:
        image = first_frame(medium) if isinstance(medium, Video) else decode(medium)
    except FinetuneError:
        return escape(f"({name} is gone)")
    image.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f'<img alt="{escape(name)}" src="{data_uri(buffer.getvalue(), "image/png")}">'


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
