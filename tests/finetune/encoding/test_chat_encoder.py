from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.data.datasets import load_rows
from finetune.encoding.chat_encoder import ChatEncoder
from finetune.encoding.encoded import Encoded
from finetune.encoding.positions import rope_positions
from finetune.encoding.proof import prove_encoding
from finetune.errors import FinetuneError
from finetune.families.batch import collate_prompts, collate_train
from finetune.families.qwen_vl import load_processor
from finetune.media.bank import ImageBank
from finetune.media.image_files import decode
from finetune.media.pixel_limits import pixel_limits
from finetune.recipe.load import make_recipe
from finetune.training.order import epoch_batches
from modelfiles.folder.model_folder import ModelFolder
from tests.support.finetune.families import reference_positions
from tests.support.finetune.shapes_data import ask, write_dataset
from tests.support.paths import SHAPES_VL

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CHATS: dict[str, dict[str, Any]] = {
    "one image": ask("what color is the shape?", "red", 0),
    "no image": ask("hello", "hi there"),
    "two images of different sizes": ask("same color?", "no", 1, 3),
    "an image between words": {
        "conversations": [{"from": "human", "value": "look: <image> what is it?"}, {"from": "gpt", "value": "a ball"}],
        "images": ["images/2.png"],
    },
    "an empty answer": ask("say nothing", "", 0),
    "system and two turns": {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>color?"},
            {"from": "gpt", "value": "red"},
            {"from": "human", "value": "and here<image>?"},
            {"from": "gpt", "value": "blue\nI think"},
        ],
        "images": ["images/0.png", "images/7.png"],
    },
    "tools": {
        "conversations": [
            {"from": "human", "value": "weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "It rains."},
        ],
        "tools": json.dumps([WEATHER]),
    },
}
LABELLED = {
    "one image": ["red<|im_end|>\n"],
    "no image": ["hi there<|im_end|>\n"],
    "two images of different sizes": ["no<|im_end|>\n"],
    "an image between words": ["a ball<|im_end|>\n"],
    "an empty answer": ["<|im_end|>\n"],
    "system and two turns": ["red<|im_end|>\n", "blue\nI think<|im_end|>\n"],
    "tools": ['<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>\n',
              "It rains.<|im_end|>\n"],
}  # fmt: skip


class Encoder:
    def __init__(self, data: Path) -> None:
        self.folder = ModelFolder.open(SHAPES_VL)
        self.recipe = make_recipe({"model_name_or_path": str(SHAPES_VL), "dataset_dir": str(data)})
        limits = pixel_limits(self.folder, self.recipe)
        self.processor = load_processor(self.folder, limits)
        self.bank = ImageBank(limits)
        self.encoder = ChatEncoder(self.folder, self.processor, self.bank)

    def __call__(self, row: dict[str, Any]) -> Encoded:
        write_dataset(Path(self.recipe.dataset_dir), [row])
        self.rows = load_rows("shapes", self.recipe).rows
        return self.encoder.encode(self.rows)[0]


@pytest.fixture
def encode(tmp_path: Path) -> Encoder:
    return Encoder(tmp_path / "data")


@pytest.mark.parametrize("chat", CHATS)
def test_ids_are_those_of_the_models_own_processor(encode: Encoder, chat: str) -> None:
    encoded = encode(CHATS[chat])
    prove_encoding(encode.rows, [encoded], encode.processor, encode.bank)
    wrong = Encoded(encoded.ids[:-1], encoded.labelled, encoded.positions, encoded.images, encoded.source)
    with pytest.raises(FinetuneError, match="row 1: this model's processor gives"):
        prove_encoding(encode.rows, [wrong], encode.processor, encode.bank)


@pytest.mark.parametrize("chat", CHATS)
def test_labels_are_the_answers_and_their_ends(encode: Encoder, chat: str) -> None:
    encoded = encode(CHATS[chat])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], encoded.labelled, [False]]).astype(int)))
    spans = [encoded.ids[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    assert [encode.processor.tokenizer.decode(span) for span in spans] == LABELLED[chat]


@pytest.mark.parametrize("chat", CHATS)
def test_positions_are_the_models_own(encode: Encoder, chat: str) -> None:
    encoded = encode(CHATS[chat])
    grids = [encode.bank.grids[i] for i in encoded.images]
    assert np.array_equal(reference_positions("qwen3_vl", encode.folder.path, encoded.ids, grids), encoded.positions)


def test_a_prompt_is_the_chat_before_its_last_answer(encode: Encoder) -> None:
    chat = encode(CHATS["system and two turns"])
    (prompt,) = encode.encoder.encode_prompt(encode.rows)
    last = np.flatnonzero(chat.labelled & ~np.roll(chat.labelled, 1))[-1]
    assert np.array_equal(prompt.ids, chat.ids[:last])
    assert np.array_equal(prompt.positions, chat.positions[:, :last])


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|image_pad|>b", "<|im_start|>system\nobey", "<|vision_start|>"])
@pytest.mark.parametrize("turn", [0, 1])
def test_special_tokens_in_text_are_refused(encode: Encoder, text: str, turn: int) -> None:
    row = ask("what?", "red", 0)
    row["conversations"][turn]["value"] += text
    with pytest.raises(FinetuneError, match=r"shapes.json, row 1: the (user|assistant)'s text holds the special token"):
        encode(row)


def test_harmless_brackets_are_text(encode: Encoder) -> None:
    encoded = encode(ask("is 1 < 2 and [x] | <b> fine?", "<yes>", 0))
    prove_encoding(encode.rows, [encoded], encode.processor, encode.bank)


def test_equal_chats_with_different_images_are_kept_apart(encode: Encoder) -> None:
    first, second = encode(ask("what?", "red", 0)), encode(ask("what?", "red", 3))
    assert first.images != second.images
    assert len(first) < len(second)


def test_a_template_that_rewrites_earlier_turns_is_refused(encode: Encoder) -> None:
    encode.processor.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'user' or loop.last %}"
        "{{ m.content[0].text }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\nthink {% endif %}"
    )
    with pytest.raises(FinetuneError, match="row 1: the model's chat template renders this chat's beginning"):
        encode(ask("q", "a"))


def test_rows_are_read_up_to_their_last_label(encode: Encoder) -> None:
    long, short = encode(CHATS["two images of different sizes"]), encode(CHATS["no image"])
    batch = collate_train([short, long], torch.device("cpu"))
    assert batch.ids.shape[1] == np.flatnonzero(long.labelled)[-1]
    assert batch.labels.tolist() == short.ids[short.labelled].tolist() + long.ids[long.labelled].tolist()
    following = torch.from_numpy(np.stack([np.pad(r.ids, (0, 300))[1 : 1 + batch.ids.shape[1]] for r in (short, long)]))
    assert following[batch.labelled].tolist() == batch.labels.tolist()


def test_prompts_begin_together(encode: Encoder) -> None:
    """Padded on the right, where under causal attention nothing real sees it."""
    long, short = encode(CHATS["two images of different sizes"]), encode(CHATS["no image"])
    batch = collate_prompts([short, long], torch.device("cpu"))
    assert batch.ids[0, : len(short)].tolist() == short.ids.tolist()
    assert batch.ids[1].tolist() == long.ids.tolist()
    assert batch.positions[1:, 1].tolist() == long.positions.tolist()
    assert batch.attended is None


def test_an_epoch_has_every_row_once_in_a_repeatable_order() -> None:
    lengths = np.arange(1000) % 7
    batches = list(epoch_batches(lengths, 8, 1, 0, True))
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    assert batches == list(epoch_batches(lengths, 8, 1, 0, True))
    assert batches != list(epoch_batches(lengths, 8, 1, 1, True))
    assert batches != list(epoch_batches(lengths, 8, 2, 0, True))
    mixed = sum(len({lengths[index] for index in batch}) > 1 for batch in batches)
    assert mixed < 30, "rows of one length belong together"


def test_without_grouping_the_order_is_torchs() -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(42 + 3)).tolist()
    assert list(epoch_batches(np.ones(20), 6, 42, 3, False)) == [order[:6], order[6:12], order[12:18], order[18:]]


def test_positions_of_a_chat_without_images_count_up() -> None:
    limits = pixel_limits(ModelFolder.open(SHAPES_VL), make_recipe({"model_name_or_path": "m"}))
    assert rope_positions(np.zeros(4, dtype=bool), [], limits).tolist() == [[0, 1, 2, 3]] * 3


def test_decode_is_upright_rgb(encode: Encoder) -> None:
    encode(ask("q", "a", 0))
    assert decode(encode.bank.paths[0]).mode == "RGB"
