"""Families without code of their own: ids, labels, loss, answers, resuming, merging, against transformers' own code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from finetune.data.datasets import load_rows
from finetune.encoding.proof import prove_encoding
from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import evaluate
from finetune.export.merge import merge
from finetune.families.registry import family_of
from finetune.media.image_files import decode
from finetune.model.base import four_bit_layers, load_base
from finetune.model.changes import QUANTISED
from finetune.model.folder import open_base
from finetune.model.targets import make_trainable
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from finetune.training.loop import train
from modelfiles.folder.model_folder import ModelFolder
from tests.support.finetune.families import assert_merged_as_peft_does
from tests.support.finetune.other_families import CHATML, OTHERS, other_folder
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")
QUIET = Console(quiet=True)
TWO_TURNS = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>color?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "<image>and here?"},
        {"from": "gpt", "value": "blue"},
    ],
    "images": ["images/2.png", "images/7.png"],
}
CHATS = [
    ask("what color is the shape?", "red", 0), ask("same color?", "no", 1, 3), ask("hello", "hi there"), TWO_TURNS,
]  # fmt: skip
ENDS = {"gemma3": "<end_of_turn>\n", "idefics3": "<end_of_utterance>\n"}


@pytest.fixture(params=OTHERS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recipe_of(recipe: MakeRecipe, dataset: Path, family: str, tmp_path: Path) -> MakeRecipe:
    """Recipes for a tiny model of the family and chats of no, one and two images, two turns, a system prompt."""
    write_dataset(dataset, CHATS)
    folder = other_folder(family, tmp_path / family)
    return lambda **keys: recipe(**{"model_name_or_path": str(folder), "per_device_train_batch_size": 2} | keys)


@pytest.fixture
def llava(recipe: MakeRecipe, dataset: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe for a LLaVA folder and chats; keyword arguments change the folder's description."""

    def make(chats: list[dict[str, Any]] = CHATS, keys: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        write_dataset(dataset, chats)
        folder = other_folder("llava", tmp_path / "llava", **changes)
        return recipe(**{"model_name_or_path": str(folder)} | (keys or {}))

    return make


def inputs_of(data: Any, row: Any, messages: int | None = None, prompt: bool = False) -> Any:
    """What the processor's own chat template makes of a row's first messages."""
    images = iter([decode(path) for path in row.images])
    chat = [
        message
        | {
            "content": [
                {"type": "image", "image": next(images)} if part["type"] == "image" else part
                for part in message["content"]
            ]
        }
        for message in row.messages[:messages]
    ]
    return data.processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=prompt
    )


def test_ids_are_the_processors(recipe_of: MakeRecipe, family: str) -> None:
    data = load_training_data(recipe_of(), QUIET)
    prove_encoding(load_rows("shapes", recipe_of()).rows, data.rows, data.processor, data.bank)
    end = ENDS.get(family, "<|im_end|>\n")
    answers = [data.processor.tokenizer.decode(row.ids[row.labelled]) for row in data.rows]
    space = " " if family == "idefics3" else ""
    said = [["red"], ["no"], ["hi there"], ["red", "blue"]]
    assert answers == ["".join(space + answer + end for answer in answers) for answers in said]


def test_prompts_are_the_processors(recipe_of: MakeRecipe) -> None:
    data = load_training_data(recipe_of(), QUIET)
    rows = load_rows("shapes", recipe_of()).rows
    for row, ours in zip(rows, data.encoder.encode_prompt(rows), strict=True):
        assert inputs_of(data, row, -1, prompt=True)["input_ids"][0].tolist() == ours.ids.tolist(), row.source


def test_the_loss_is_the_models(recipe_of: MakeRecipe) -> None:
    """Of each row alone, and of all rows padded to one length together."""
    data = load_training_data(recipe_of(), QUIET)
    base = load_base(data.folder, recipe_of(), CPU, torch.float32)
    family = family_of(data.folder)
    feed, loss_of = family.feed(base, data, []), family.loss(base, 0.0)
    summed = 0.0
    for row, ours in zip(load_rows("shapes", recipe_of()).rows, data.rows, strict=True):
        inputs = inputs_of(data, row)
        labels = inputs["input_ids"].clone()
        labels[0, ~torch.from_numpy(ours.labelled)] = -100
        theirs = base(**inputs, labels=labels).loss
        batch, images = feed.batch([ours])
        loss = loss_of(batch, images)
        assert torch.allclose(loss / len(batch.labels), theirs, rtol=1e-4), row.source
        summed += loss.item()
    batch, images = feed.batch(data.rows)
    assert loss_of(batch, images).item() == pytest.approx(summed, rel=1e-4)
    feed.close()


def test_a_models_own_cap_on_its_logits_counts(llava: Callable[..., Recipe]) -> None:
    made = llava()
    data = load_training_data(made, QUIET)
    base = load_base(data.folder, made, CPU, torch.float32)
    family = family_of(data.folder)
    (batch, images), loss = family.feed(base, data, []).batch(data.rows), family.loss(base, 0.0)
    plain, forward = loss(batch, images).item(), base.forward

    def capped(**inputs: Any) -> Any:
        out = forward(**inputs)
        out.logits = torch.tanh(20 * out.logits)
        return out

    base.forward = capped
    logits = base(**images).logits[batch.labelled]
    theirs = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
    assert loss(batch, images).item() == pytest.approx(theirs.item(), rel=1e-5)
    assert loss(batch, images).item() != pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize("keys", [{"quantization_bit": 4}, {"use_dora": True, "use_rslora": True}])
def test_adapters_alone_learn(recipe_of: MakeRecipe, keys: dict[str, Any]) -> None:
    """All linears of the language model get adapters and gradients; vision and projector stay whole and frozen."""
    made = recipe_of(**keys)
    data = load_training_data(made, QUIET)
    base = load_base(data.folder, made, CPU, torch.float32)
    part = "model.text_model" if hasattr(base.model, "text_model") else "model.language_model"
    names = four_bit_layers(base)
    if "quantization_bit" in keys:
        assert len(names) == 7 * len(base.get_submodule(part).layers)
        assert all(name.startswith(f"{part}.layers.") for name in names)
        tensors = data.folder.tensors.items()
        assert len([name for name, info in tensors if QUANTISED.fullmatch(name) and len(info.shape) == 2]) == len(names)
    before = {name: p.clone() for name, p in base.named_parameters()}
    model = make_trainable(base, made)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kinds = 3 if "use_dora" in keys else 2
    assert len(trained) == kinds * 7 * len(base.get_submodule(part).layers)
    assert all(name.startswith(f"base_model.model.{part}.layers.") for name in trained)
    family = family_of(data.folder)
    feed, loss_of = family.feed(base, data, []), family.loss(base, 0.0)
    optimizer = torch.optim.SGD(trained.values(), lr=0.01)
    batch, images = feed.batch(data.rows)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = loss_of(batch, images)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in trained.values())
    assert losses[-1] < losses[0]
    after = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): p for name, p in model.named_parameters()
    }
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    feed.close()


def test_the_line_ends_in_the_bases_own_names(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    """Train with a stop in the middle, merge, and answer with both; the merged weights are PEFT's."""
    keys = {"max_steps": 8, "learning_rate": 0.02, "save_steps": 4, "lora_dropout": 0.1, "eval_strategy": "steps"}
    keys |= {"disable_gradient_checkpointing": False}
    train(recipe_of(**keys))
    shutil.copytree(tmp_path / "out/checkpoint-4", tmp_path / "half/checkpoint-4")
    train(recipe_of(**keys, output_dir=str(tmp_path / "half")))
    whole, resumed = (tmp_path / name / "adapter_model.safetensors" for name in ("out", "half"))
    assert whole.read_bytes() == resumed.read_bytes()

    adapter = {"adapter_name_or_path": str(tmp_path / "out")}
    target = merge(recipe_of(**adapter, eval_dataset=None, export_dir=str(tmp_path / "merged")))
    folder = open_base(recipe_of())
    tensors, originals = ModelFolder.open(target).tensors, folder.tensors
    assert {name: (info.dtype, info.shape) for name, info in tensors.items()} == {
        name: (info.dtype, info.shape) for name, info in originals.items()
    }
    for file in folder.path.iterdir():
        if file.suffix != ".safetensors" and file.name != "README.md":
            assert (target / file.name).read_bytes() == file.read_bytes(), file.name
    changed, original = load_file(target / "model.safetensors"), load_file(folder.path / "model.safetensors")
    differ = [name for name in changed if not torch.equal(changed[name], original[name])]
    assert len(differ) == 14
    assert all(QUANTISED.fullmatch(name) for name in differ)
    assert_merged_as_peft_does(target, recipe_of, tmp_path / "out")
    report = (tmp_path / "out/report.html").read_text()
    assert "and here?" in report
    assert "hello" in report


def test_answers_are_transformers_generates(recipe_of: MakeRecipe, tmp_path: Path) -> None:
    """In one batch padded on the left, as alone; what the folder says of sampling and repetition has no effect."""
    from transformers import AutoModelForImageTextToText

    made = recipe_of(max_new_tokens=6, per_device_eval_batch_size=4)
    settings = Path(made.model_name_or_path) / "generation_config.json"
    plain = json.loads(settings.read_text())
    settings.write_text(json.dumps(plain | {"do_sample": True, "temperature": 0.7, "repetition_penalty": 5.0}))
    evaluate(made)
    settings.write_text(json.dumps(plain))
    lines = (tmp_path / "out/generated_predictions.jsonl").read_text().splitlines()
    data = load_training_data(made, QUIET)
    model = AutoModelForImageTextToText.from_pretrained(data.folder.path, dtype=torch.float32)
    for row, line in zip(load_rows("shapes", made).rows, lines, strict=True):
        inputs = inputs_of(data, row, -1, prompt=True)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert json.loads(line)["predict"] == data.processor.tokenizer.decode(ids, skip_special_tokens=True), row.source


def test_an_answer_that_is_turned_off_has_no_labels(llava: Callable[..., Recipe]) -> None:
    turns = [("human", "hello", {}), ("gpt", "WRONG", {"loss": False}), ("human", "what?", {}), ("gpt", "red", {})]
    chat = {"conversations": [{"from": who, "value": text} | flags for who, text, flags in turns]}
    data = load_training_data(llava([chat] * 2, keys={"eval_dataset": None}), Console(quiet=True))
    decoded = data.processor.tokenizer.decode(data.rows[0].ids[data.rows[0].labelled])
    assert "red" in decoded
    assert "WRONG" not in decoded


def test_check_shows_what_is_learnt_and_says_what_it_cannot_tell(
    llava: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    made = llava(keys={"eval_dataset": None})
    assert check_recipe(made, Report(Console(soft_wrap=True, width=200)))
    shown = capsys.readouterr().out
    assert "(16 image tokens)" in shown
    assert "Memory is not estimated for llava models" in shown
    assert "LMDeploy 0.18 loads the merged model: its PyTorch engine lists LlavaForConditionalGeneration" in shown


def test_check_names_every_row_that_does_not_pass(
    llava: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    tools = ask("hello", "hi") | {"tools": [{"name": "f"}]}
    made = llava([*CHATS, tools, ask("and?", "yes"), tools], keys={"eval_dataset": None})
    assert not check_recipe(made, Report(Console(soft_wrap=True, width=200)))
    shown = capsys.readouterr().out
    assert all(f"row {number}: llava (llava) cannot be trained: tools" in shown for number in (5, 7))
    assert "5 rows" in shown


REWRITES = CHATML.replace("{%- for part", "{{- '<think>' if loop.last else '' -}}{%- for part")
NO_END = """{%- for message in messages -%}{{- message.role | upper + ': ' -}}
{%- for part in message.content -%}{{- '<image>\n' if part.type == 'image' else part.text + ' ' -}}{%- endfor -%}
{%- endfor -%}{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no template": ({"template": ""}, "a 'llava' model without a chat template"),
    "history": ({"template": REWRITES.replace("IMAGE", "'<image>'")}, "row 1: .*before an answer into other tokens"),
    "no end": ({"template": NO_END}, r"row 1: .*does not end answers with a token.*\(eos_token_id 2024\).*'red'"),
    "no image": ({"template": CHATML.replace("IMAGE", "''")}, "row 1: .*shows 0 of 1 image"),
    "no system": (
        {"template": CHATML.replace("IMAGE", "'<image>'").replace("part.text -}}", "part.text | trim('.') -}}")},
        "row 4: .*does not show all of the text, such as 'Be brief.'",
    ),
    "raises": ({"template": "{{ raise_exception('Only users speak') }}"}, "row 1: .*take this chat: Only users speak"),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_a_template_that_does_not_pass_is_refused(llava: Callable[..., Recipe], reason: str) -> None:
    changes, message = REFUSED[reason]
    with pytest.raises(FinetuneError, match=message):
        train(llava(**changes))


@pytest.mark.parametrize(
    "keys",
    [
        {"freeze_vision_tower": False}, {"freeze_multi_modal_projector": False}, {"finetuning_type": "full"},
        {"finetuning_type": "freeze"}, {"additional_target": "embed_tokens"}, {"neftune_noise_alpha": 5},
        {"cutoff_policy": "shrink"}, {"image_max_pixels": 4096}, {"fsdp": "full_shard"},
    ],
    ids=lambda keys: next(iter(keys)) + str(next(iter(keys.values()))),
)  # fmt: skip
def test_what_only_qwen_vl_can_is_refused_by_its_key(llava: Callable[..., Recipe], keys: dict[str, Any]) -> None:
    (key,) = keys
    with pytest.raises(FinetuneError, match=f"^{key}: .*is for the Qwen-VL families; .*'llava' model"):
        train(llava(keys=keys))


def test_models_that_are_none_are_refused(llava: Callable[..., Recipe]) -> None:
    made = llava()
    folder = Path(made.model_name_or_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(FinetuneError, match=r"'mamba' model, which transformers .* supported are qwen3_vl"):
        train(made)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()
    with pytest.raises(FinetuneError, match=r"'llava' model without a preprocessor_config\.json"):
        train(made)


def test_files_that_an_adapter_cannot_be_merged_into_are_refused_before_training(llava: Callable[..., Recipe]) -> None:
    made = llava()
    weights = Path(made.model_name_or_path) / "model.safetensors"
    tensors = load_file(weights)
    again = {f"model.{name.replace('.model.', '.')}": tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors | again, weights)
    with pytest.raises(FinetuneError, match=r"layers\.0\.self_attn\.q_proj under another name"):
        train(made)


def test_rows_that_cannot_be_trained_are_named(llava: Callable[..., Recipe]) -> None:
    made = llava([ask("stop<|im_end|>", "red", 0)])
    with pytest.raises(FinetuneError, match=r"row 1: the user's text holds the special token <\|im_end\|>"):
        train(made)
    write_dataset(Path(made.dataset_dir), [ask("hello", "hi") | {"tools": [{"name": "f"}]}])
    with pytest.raises(FinetuneError, match=r"row 1: .*tools and tool calls are for the Qwen-VL families"):
        train(made)
    video = ask("<video>what moves?", "nothing") | {"videos": ["clip.mp4"]}
    write_dataset(Path(made.dataset_dir), [video])
    with pytest.raises(FinetuneError, match=r"row 1: .*videos are for the Qwen-VL families"):
        train(made)


def test_rows_over_cutoff_len_are_dropped_or_refused(llava: Callable[..., Recipe]) -> None:
    made = llava(keys={"cutoff_len": 40})
    data = load_training_data(made, QUIET)
    assert 0 < len(data.rows) < 4
    assert all(len(row) <= 40 for row in data.rows)
    with pytest.raises(FinetuneError, match=r"row 2: the row has \d+ tokens, over cutoff_len 40 .*or drop such rows"):
        load_training_data(made.model_copy(update={"cutoff_policy": "error"}), QUIET)


def test_a_processor_that_writes_images_otherwise_in_a_chat_is_refused(
    llava: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As LLaVA-OneVision's does: more tokens for an image that is alone."""
    from transformers import LlavaProcessor

    made, call = llava(), LlavaProcessor.__call__

    def changed(self: Any, images: Any = None, text: Any = None, **settings: Any) -> Any:
        out = call(self, images=images, text=text, **settings)
        if images and len(images[0]) > 1:
            out["input_ids"] = out["input_ids"][:, 1:]
        return out

    monkeypatch.setattr(LlavaProcessor, "__call__", changed)
    with pytest.raises(
        FinetuneError, match=r"row 2: llava .*makes 2 images of a chat into other tokens than one alone"
    ):
        train(made)


def test_images_that_the_model_counts_otherwise_end_the_run(llava: Callable[..., Recipe]) -> None:
    made = llava()
    settings = Path(made.model_name_or_path) / "processor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"num_additional_image_tokens": 0}))
    with pytest.raises(FinetuneError, match=r"row .: LlavaForConditionalGeneration does not take what its processor"):
        train(made)


def test_ids_that_change_in_a_batch_end_the_run(llava: Callable[..., Recipe]) -> None:
    made = llava()
    data = load_training_data(made, QUIET)
    base = load_base(data.folder, made, CPU, torch.float32)
    row = data.rows[0]
    wrong = np.where(row.labelled, row.ids + 1, row.ids)
    feed = family_of(data.folder).feed(base, data, [])
    with pytest.raises(FinetuneError, match="row 1: the model's processor gives other ids in a batch than alone"):
        feed.batch([data.rows[1], type(row)(**vars(row) | {"ids": wrong})])
    feed.close()
