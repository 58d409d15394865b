"""A histogram of lengths and a row as the model sees it, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from finetune.encoding.encoded import Encoded
from finetune.encoding.encoder import Encoder

BARS = 10


def histogram(lengths: Sequence[int], cutoff: int) -> Table:
    """Rows by length in tokens; red where they exceed the cutoff."""
    table = Table(title="Tokens a row", box=None, title_justify="left", pad_edge=False)
    table.add_column("tokens", justify="right")
    table.add_column("rows", justify="right")
    table.add_column("")
    counts, edges = np.histogram(lengths, bins=min(BARS, max(lengths) - min(lengths) + 1))
    for count, low, high in zip(counts, np.ceil(edges[:-1]), np.floor(edges[1:]), strict=True):
        colour = "red" if high > cutoff else "blue"
        bar = "█" * round(40 * count / counts.max()) or ("▏" if count else "")
        table.add_row(f"{int(low)} to {int(high)}", f"{count:,}", f"[{colour}]{bar}[/]")
    return table


def preview(row: Encoded, encoder: Encoder, tokenizer: Any) -> str:
    """The chat as the model reads it, label tokens in green, image and video tokens as a number."""
    text = ""
    start = 0
    kinds = np.where(row.ids == encoder.image_token_id, 2, row.labelled.astype(int))
    kinds[row.ids == encoder.video_token_id] = 3
    for end in [*(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]:
        piece = escape(tokenizer.decode(row.ids[start:end]))
        kind = kinds[start]
        if kind >= 2:
            piece = f"[dim]({end - start} {'image' if kind == 2 else 'video'} tokens)[/]"
        text += f"[green]{piece}[/]" if kind == 1 else piece
        start = end
    return f"[bold]{escape(row.source)}[/]\n{text.rstrip()}\n"
