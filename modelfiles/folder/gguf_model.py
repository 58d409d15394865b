"""What a GGUF says about its chats: the chat template, the added tokens and those that end an answer.

The keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#ggml, `tokenizer.*`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfiles.folder.gguf_header import read_gguf_metadata

_TOKENS, _KINDS = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_CONTROL, _USER_DEFINED = 3, 4  # of the kinds of tokens: special ones, and added ones that are text


@dataclass(frozen=True)
class GgufModel:
    """chat_template: Jinja, None if there is none; special_tokens: their texts by name, such as bos_token;
    added_tokens: id -> (text, whether special); eos_token_ids: the ids that end an answer.
    """

    chat_template: str | None
    special_tokens: dict[str, str]
    added_tokens: dict[int, tuple[str, bool]]
    eos_token_ids: list[int]

    @classmethod
    def open(cls, path: Path) -> GgufModel:
        """Reads a model's header. Raises GgufError."""
        data = read_gguf_metadata(path, (_TOKENS, _KINDS))
        tokens, kinds = _list(data, _TOKENS), _list(data, _KINDS)

        def ids(*names: str) -> list[int]:
            values = [data.get(f"tokenizer.ggml.{name}_token_id") for name in names]
            return list(dict.fromkeys(i for i in values if type(i) is int and 0 <= i < len(tokens)))

        names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        template = data.get("tokenizer.chat_template")
        return cls(
            template if isinstance(template, str) else None,
            {name: next((tokens[i] for i in ids(key)), "") for name, key in names.items()},
            {
                i: (token, kind == _CONTROL)
                for i, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
                if isinstance(token, str) and kind in (_CONTROL, _USER_DEFINED)
            },
            ids("eos", "eot", "eom"),
        )


def _list(data: dict[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else []
