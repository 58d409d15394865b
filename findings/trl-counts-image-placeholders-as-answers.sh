#!/usr/bin/env bash
# Expected: SFTTrainer fine-tunes a vision-language model on {"messages", "images"} rows, so the loss and the
# mean_token_accuracy that it logs say how well the text is learnt. The places of an image in the prompt are filled
# with copies of one placeholder token, which nobody wants to have predicted; they are left out of the loss.
#
# What happens: TRL's collator makes labels of everything but padding, placeholders included, and the models of
# transformers do not leave them out either. A picture has hundreds to thousands of them and an answer has a few
# tokens, so nearly all of what is counted is "after a placeholder comes a placeholder", which every model knows
# after a few steps. Here the log says loss 0.15 and accuracy 0.98, and of the answers not one is right. Rows of the
# form {"prompt", "completion", "images"} are labelled on the completion only, so the same data is counted rightly there.
#
# Versions: trl 1.16.0, transformers 5.24.0, torch 2.13.0, datasets 5.2.0, accelerate 1.15.0, Pillow 13.0.0.
#
# Why it matters: "messages" is the form of most guides. A run looks finished when its answers have not begun to be
# learnt; early stopping and the choice of a checkpoint follow the wrong number; and since the loss is a mean over all
# labels, the gradient of the answers is divided by the number of the placeholders: a larger image silently means a
# smaller learning rate for the text. Use prompt and completion, or set the labels of the placeholders to -100.
#
# Source: trl 1.16.0, trainer/sft_trainer.py, DataCollatorForVisionLanguageModeling (_collate_language_modeling takes
# the labels from input_ids and looks at attention_mask only); transformers 5.24.0, modeling_llava.py (loss_function
# gets the labels as they are).
#
# Output seen:
#   messages              262 labels a row, 256 of them placeholders
#   prompt, completion      2 labels a row, 0 of them placeholders
#   the log after 30 steps: loss 0.15, mean_token_accuracy 0.98
#   the answers then:       loss 8.10, right 0 of 8
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 transformers==5.24.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0 \
    pillow==13.0.0 numpy==2.3.5
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PY'
import sys

import datasets
import numpy
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

datasets.disable_progress_bars()
SPECIAL = ["<unk>", "<pad>", "</s>", "<image>"]
QUESTION, CODES = ["user:", "assistant:", "Which", "code?"], [f"code{number}" for number in range(40)]
words = SPECIAL + QUESTION + CODES
image_id, first_code = words.index("<image>"), words.index("code0")
backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", extra_special_tokens=["<image>"]
)
template = (
    "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
    "{{ '<image> ' if part.type == 'image' else part.text + ' ' }}{% endfor %}"
    "{{ '</s> ' if message.role == 'assistant' }}{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)
processor = LlavaProcessor(
    CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
    tokenizer,
    patch_size=14,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
    chat_template=template,
)
small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
text = LlamaConfig(vocab_size=len(words), pad_token_id=1, bos_token_id=None, eos_token_id=2, **small)
vision = CLIPVisionConfig(image_size=224, patch_size=14, **small)


def model():
    torch.manual_seed(0)
    config = LlavaConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_id=image_id)
    return LlavaForConditionalGeneration(config)


random = numpy.random.default_rng(0)
question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which code?"}]}]
chats, pairs = [], []
for _ in range(64):
    picture = Image.fromarray(random.integers(0, 255, (224, 224, 3), dtype=numpy.uint8))
    code = CODES[random.integers(len(CODES))]  # nothing that could be learnt in 30 steps
    answer = [{"role": "assistant", "content": [{"type": "text", "text": code}]}]
    chats.append({"messages": question + answer, "images": [picture]})
    pairs.append({"prompt": question, "completion": answer, "images": [picture]})


def trainer(rows):
    options = {"per_device_train_batch_size": 8, "max_steps": 30, "logging_steps": 10, "learning_rate": 1e-2}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "bf16": False}
    config = SFTConfig("out", max_length=None, gradient_checkpointing=False, **options, **quiet)
    return SFTTrainer(model(), config, train_dataset=datasets.Dataset.from_list(rows), processing_class=processor)


by_chat, by_pair = trainer(chats), trainer(pairs)
counts = {}
for name, run in (("messages", by_chat), ("prompt, completion", by_pair)):
    labels = next(iter(run.get_train_dataloader()))["labels"][0]
    counts[name] = int((labels != -100).sum()), int((labels == image_id).sum())

batch = next(iter(by_chat.get_train_dataloader()))
stdout, sys.stdout = sys.stdout, sys.stderr  # the trainer prints its log
by_chat.train()
sys.stdout = stdout
log = [entry for entry in by_chat.state.log_history if "mean_token_accuracy" in entry][-1]
with torch.no_grad():
    logits = by_chat.model.eval()(**batch).logits[:, :-1]
wanted = batch["labels"][:, 1:]
answers = wanted >= first_code
loss = torch.nn.functional.cross_entropy(logits[answers], wanted[answers]).item()
right = int((logits.argmax(-1)[answers] == wanted[answers]).sum())
seen = counts, log["loss"], log["mean_token_accuracy"], loss, right
(labels, placeholders), (completion, none) = counts.values()
if not (placeholders > labels / 2 and none == 0 and log["mean_token_accuracy"] > 0.9 and loss > 10 * log["loss"]):
    sys.exit(f"The behaviour has changed: {seen}.")
for name, (all_labels, of_images) in counts.items():
    print(f"{name:<20} {all_labels:>4} labels a row, {of_images} of them placeholders")
print(f"the log after 30 steps: loss {log['loss']:.2f}, mean_token_accuracy {log['mean_token_accuracy']:.2f}")
print(f"the answers then:       loss {loss:.2f}, right {right} of {int(answers.sum())}")
PY
