"""The HTML that the report pages share. Everything from outside is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from finetune.data.row_media import Video
from finetune.errors import FinetuneError
from finetune.media.image_files import decode
from finetune.media.videos import first_frame

THUMBNAIL = (160, 160)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; vertical-align: top }
th { font-weight: 600 } td.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } .right { color: #116329 } .wrong { color: #a40e26 }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto }
"""


def render_page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def render_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def format_number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def render_answer(text: str, label: str) -> str:
    right = text.strip().casefold() == label.strip().casefold()
    return f'<span class="{"right" if right else "wrong"}">{escape(text)}</span>'


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
