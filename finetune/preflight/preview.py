"""A histogram of lengths and a row as the model sees it, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from finetune.encoding.encoded import Encoded, split_pair
from finetune.encoding.encoder import Encoder
from finetune.preflight.report import Report
from modelfiles import counted

BARS = 10
WIDTH = 40  # characters of the longest bar


def histogram(lengths: Any, cutoff: int) -> Table:
    """Rows by length in tokens, lengths: [R]; red where they exceed the cutoff."""
    lengths = np.asarray(lengths)
    table = Table(title="Tokens a row", box=None, title_justify="left", pad_edge=False)
    table.add_column("tokens", justify="right")
    table.add_column("rows", justify="right")
    table.add_column("")
    edges = round_edges(int(lengths.min()), int(lengths.max()))
    counts, _ = np.histogram(lengths, bins=edges)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        last = high - 1  # the last bar of numpy's includes its upper edge, which is beyond all lengths here
        colour = "red" if low > cutoff else "yellow" if last > cutoff else "blue"
        bar = "█" * round(WIDTH * count / counts.max()) or ("▏" if count else "")
        table.add_row(f"{low:,} to {last:,}", f"{count:,}", f"[{colour}]{bar}[/]")
    if edges[-1] > cutoff:
        table.caption = f"over cutoff_len {cutoff:,}: {counted(int((lengths > cutoff).sum()), 'row')}"
        table.caption_justify = "left"
    return table


def round_edges(least: int, greatest: int) -> list[int]:
    """Edges of at most BARS bars in round numbers: the last is beyond `greatest`.

    Each bar is as wide as the others, or, where the longest row is many times the shortest, twice the one before.
    """
    if greatest > 16 * max(least, 16):
        first = 1 << max(least, 1).bit_length() - 1
        edges = [first << step for step in range((greatest // first).bit_length() + 1)]
        return edges if len(edges) <= BARS + 1 else [0, *edges[-BARS:]]
    steps = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    step = next(step for step in steps if greatest // step - least // step < BARS)
    return [*range(least // step * step, greatest + step + 1, step)][: greatest // step - least // step + 2]


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
            piece = f"[dim]({counted(end - start, 'image token' if kind == 2 else 'video token')})[/]"
        text += f"[green]{piece}[/]" if kind == 1 else piece
        start = end
    return f"[bold]{escape(row.source)}[/]\n{text.rstrip()}\n"


def describe_pairs(rows: Sequence[Encoded], report: Report) -> None:
    """Prints how long chosen and rejected answers are, and warns where pairs teach nothing or mostly length."""
    tokens, same = np.zeros((len(rows), 2), np.int64), np.zeros(len(rows), dtype=bool)
    for number, row in enumerate(rows):
        one, other = split_pair(row)
        tokens[number] = one.labelled.sum(), other.labelled.sum()
        same[number] = np.array_equal(one.ids, other.ids)
    chosen, rejected = tokens.mean(axis=0)
    report.say(
        f"{counted(len(rows), 'pair')}; chosen answers have {chosen:.1f} tokens on average, rejected ones "
        f"{rejected:.1f}"
    )
    if same.any():
        first = rows[int(np.argmax(same))].source
        report.warn(
            f"{counted(int(same.sum()), 'pair has', 'pairs have')} the same answer twice, which teaches nothing: "
            f"{first}."
        )
    longer = float((tokens[:, 0] > tokens[:, 1]).mean())
    if len(rows) >= 20 and longer > 0.8:
        report.warn(
            f"the chosen answer is the longer one in {longer:.0%} of the pairs, so longer answers will be learnt; "
            "pref_loss: simpo goes by the mean of each answer's tokens."
        )
    report.figures["pairs"] = {"pairs": len(rows), "chosen_tokens": chosen, "rejected_tokens": rejected}
