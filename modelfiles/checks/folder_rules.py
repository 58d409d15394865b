"""Rules of `doctor`: model folders (MF1xx, MF2xx) and GGUF files (MF5xx)."""

from __future__ import annotations

from modelfiles.checks.rule import ERROR, GENERATE, WARNING, Rule

FOLDER_RULES: dict[str, Rule] = {
    "MF101": Rule(
        ERROR,
        "Not a model folder",
        "Says `no Modelfile or safetensors files found`.",
        "Give the folder that holds config.json and *.safetensors.",
    ),
    "MF102": Rule(
        ERROR,
        "A PEFT adapter instead of a model",
        "Says `no Modelfile or safetensors files found`; its ADAPTER takes safetensors for Llama and Gemma 2 only.",
        "Merge it with `lensmith export`, or convert it and use `--route adapter-gguf`.",
    ),
    "MF103": Rule(
        ERROR,
        "A file that cannot be trusted: a link out of the folder, a pipe, a path in the index",
        "Says `insecure path` for links; follows the index not at all.",
        "Copy the real files into the folder.",
    ),
    "MF104": Rule(
        ERROR,
        "A broken, oversized or absurdly nested JSON or text file",
        "Fails while converting, with the JSON decoder's message.",
        "Restore the file from the base model.",
    ),
    "MF105": Rule(
        ERROR,
        "A Git LFS pointer where a file should be",
        "Uploads the pointer and fails while converting.",
        "Run `git lfs pull` in the folder.",
    ),
    "MF106": Rule(
        ERROR,
        "A safetensors header that does not add up",
        "Reads the header length unchecked; allocates what it claims.",
        "Download or merge the weights again.",
    ),
    "MF107": Rule(
        ERROR,
        "A shard that the index names is missing",
        "Create says `success`; the model is incomplete.",
        "Copy the missing shard into the folder.",
    ),
    "MF201": Rule(
        ERROR,
        "config.json names no architecture",
        "Says `unknown architecture`.",
        "Copy `architectures` from the base model's config.json.",
    ),
    "MF202": Rule(
        ERROR,
        "The architecture is imported from GGUF only",
        "Says `unsupported architecture`.",
        "Use `--route gguf`.",
    ),
    "MF203": Rule(
        ERROR,
        "The architecture is in no row of the family table",
        "Depends; mostly `unsupported architecture`.",
        "See `lensmith modelfile inspect`; a ChatML model may go by `--route gguf`.",
    ),
    "MF204": Rule(
        ERROR,
        "A file that the import needs is missing",
        "Says `open preprocessor_config.json: no such file or directory`. transformers 5 does not write that file.",
        GENERATE,
    ),
    "MF205": Rule(
        ERROR,
        "The rope settings are only where transformers 5 looks",
        "Since 0.30 create fails with `failed to validate GGUF with llama-quantize`; before, the import had a rope "
        "base of 0 and answered nonsense.",
        GENERATE,
    ),
    "MF206": Rule(
        ERROR,
        "The text settings are nested where Ollama reads them at the root",
        "Create says `success` with a block_count of 0; running it fails.",
        GENERATE,
    ),
    "MF207": Rule(
        ERROR,
        "No weight file is called model*.safetensors",
        "Says `no Modelfile or safetensors files found`.",
        GENERATE,
    ),
    "MF208": Rule(
        ERROR,
        "A tensor of the language model is missing",
        "Create says `success`; running it fails.",
        "Merge again and check that the merge wrote every tensor.",
    ),
    "MF209": Rule(
        ERROR,
        "A tensor of the vision tower is missing",
        "Create says `success`; running it fails.",
        "Merge again and check that the merge wrote every tensor.",
    ),
    "MF210": Rule(
        ERROR,
        "Tensors of an adapter are left in the weights",
        "Create says `success` and ignores them: the fine-tuning is lost, or running fails.",
        "Merge the adapter properly (`lensmith export`).",
    ),
    "MF211": Rule(
        ERROR,
        "The weights are quantized (bitsandbytes, GPTQ, AWQ)",
        "Create says `success` for bitsandbytes; running it fails.",
        "Merge into the 16-bit base; let Ollama quantize (`--quantize Q4_K_M`).",
    ),
    "MF212": Rule(
        ERROR,
        "Tensor names that Ollama does not map",
        "Says `tensor ... dimensions 5 exceeds maximum 4`, or imports the tensors without ever using them.",
        "Save the model with the names of its published checkpoint (`lensmith export` keeps them).",
    ),
    "MF213": Rule(
        ERROR,
        "A dtype that Ollama does not read",
        "Reads BF16, F16, F32 and F8_E4M3; fails on others.",
        "Convert the weights to BF16.",
    ),
    "MF214": Rule(
        ERROR,
        "The experts are stored the way transformers 5 stores them",
        "Transposes the experts' weights (its source says so, not measured): these would come out wrong.",
        "Keep the published checkpoint's layout: (experts, moe_intermediate_size, hidden_size) for down_proj.",
    ),
    "MF215": Rule(
        ERROR,
        "The tokenizer has tokens that the embedding has no row for",
        "Create says `success`; such a token ends the server.",
        "Resize the embedding, or use the base model's tokenizer.",
    ),
    "MF216": Rule(
        ERROR,
        "An end-of-answer token is no special token of the tokenizer",
        "Answers do not end.",
        "Correct eos_token_id in generation_config.json.",
    ),
    "MF217": Rule(
        ERROR,
        "The folder has no chat template, or it does not render",
        "Falls back to `{{ .Prompt }}`: the model sees no turns.",
        "Copy chat_template.jinja from the base model.",
    ),
    "MF218": Rule(
        WARNING,
        "A folder inside holds further model*.safetensors",
        "Hashes and uploads those too.",
        "Keep checkpoints outside; the stage folder of `generate` leaves them out.",
    ),
    "MF219": Rule(
        ERROR,
        "The number of experts is only under transformers 5's name",
        "Reads num_experts and takes the model for one without experts (read in its source, not measured).",
        GENERATE,
    ),
    "MF220": Rule(
        ERROR,
        "The vision tower's weights are absent",
        "Create says `success`; the model becomes text-only and answers as if there were no image.",
        "Copy the vision weights from the base model, or merge again.",
    ),
    "MF221": Rule(
        ERROR,
        "The index and the shards disagree",
        "Ignores the index and takes what the shards hold.",
        "Write the index again from the shards.",
    ),
    "MF222": Rule(
        ERROR,
        "Ollama makes every image larger than training ever did",
        "Since 0.30 sizes the images of qwen2vl, qwen25vl, qwen3vl and qwen3vlmoe to 1024 to 4096 tokens, and no "
        "option changes it: a model trained at 4 tokens an image answered 0 of 40 questions there and 40 of 40 in "
        "llama-server.",
        "Train with `image_min_pixels` of 1024 tokens (1048576 for Qwen3-VL, 802816 for Qwen2.5-VL), or serve the GGUF "
        "pair with the llama-server line that the message names.",
    ),
    "MF223": Rule(
        WARNING,
        "Ollama enlarges small images that training left as they were",
        "Since 0.30 sizes the images of qwen2vl, qwen25vl, qwen3vl and qwen3vlmoe to at least 1024 tokens.",
        "Train with `image_min_pixels` of 1024 tokens (1048576 for Qwen3-VL, 802816 for Qwen2.5-VL); larger images are "
        "not concerned.",
    ),
    "MF224": Rule(
        WARNING,
        "preprocessor_config.json and processor_config.json differ",
        "Reads the first, as transformers 4.57 does. transformers 5 reads the second where both exist.",
        "Copy the right values into the other file. `lensmith export` writes the limits of training to both.",
    ),
    "MF501": Rule(
        ERROR,
        "A GGUF model without its mmproj",
        "The model lacks the capability `vision`; an image gets 400 `Multimodal data provided, but model does not`...",
        "Add `FROM ./mmproj.gguf`; llama.cpp's converter writes it in a second run with --mmproj.",
    ),
    "MF502": Rule(ERROR, "A GGUF file that cannot be read", "Says `invalid file magic`.", "Convert again."),
    "MF503": Rule(
        ERROR,
        "A GGUF pair for an Ollama before 0.30",
        "From 0.6 to 0.29 two FROM lines lose vision.",
        "Ask for 0.30 or later.",
    ),
    "MF504": Rule(
        ERROR,
        "The mmproj belongs to another model",
        "Create says `success`; running it fails or sees noise.",
        "Convert both from the same folder.",
    ),
}
