"""Chats with a chosen and a rejected answer, taken apart. It imports no torch: pages and estimates need it too."""

from __future__ import annotations

import numpy as np

from finetune.encoding.encoded import Encoded


def split_pair(row: Encoded) -> tuple[Encoded, Encoded]:
    """The chats with the chosen and with the rejected answer, of a chat with both in succession."""
    labelled = np.flatnonzero(row.labelled)
    end = int(labelled[np.flatnonzero(np.diff(labelled) != 1)[0]]) + 1  # of the chosen answer
    start = int(labelled[0])
    # Both answers' turns begin with the same token, which no text may hold.
    turn = start - 1 - int(np.argmax(row.ids[:start][::-1] == row.ids[end]))
    chosen = Encoded(row.ids[:end], row.labelled[:end], row.positions[:, :end], row.images, row.source)
    kept = np.r_[0:turn, end : len(row)]
    positions = row.positions[:, kept]
    positions[:, turn:] -= positions[:, turn : turn + 1] - row.positions[:, turn : turn + 1]
    return chosen, Encoded(row.ids[kept], row.labelled[kept], positions, row.images, row.source)
