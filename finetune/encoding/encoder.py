"""What every family's encoder does: a chat becomes token ids, labels and image placeholders."""

from __future__ import annotations

from finetune.encoding.chat_encoder import ChatEncoder
from finetune.encoding.processor_encoder import ProcessorEncoder

Encoder = ChatEncoder | ProcessorEncoder
