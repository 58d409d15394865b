"""Text in a dataset that spells a model's structural tokens, which is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from finetune.data.formats import Row
from finetune.data.row_media import IMAGE, VIDEO
from finetune.errors import FinetuneError

# Tokens that texts about places in an image are written with; they stand for nothing but themselves.
GROUNDING = frozenset(
    f"<|{kind}_{edge}|>" for kind in ("object_ref", "box", "quad", "point", "poly", "obb") for edge in ("start", "end")
)


def special_tokens(tokenizer: Any) -> list[str]:
    """The tokens of a model that structure a chat, which no text may hold."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in tokens if token not in GROUNDING]


def refuse_specials(row: Row, specials: Sequence[str]) -> None:
    """Text that holds a special token would become that token: a broken chat or an image that is not there."""
    for message in row.messages:
        texts = [part["text"] for part in message["content"] if part["type"] == "text"]
        texts += [json.dumps(message["tool_calls"], ensure_ascii=False)] if "tool_calls" in message else []
        for text in texts:
            if "<" in text or "[" in text:
                found = next((special for special in specials if special in text), None)
                if found:
                    raise FinetuneError(
                        f"{row.source}: the {message['role']}'s text holds the special token {found}; remove it "
                        f"(images are written {IMAGE}, videos {VIDEO})."
                    )
