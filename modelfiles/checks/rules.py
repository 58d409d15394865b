"""The one table of rules that `doctor` and `lint` check. docs/modelfile-rules.md is written from it:

    python -m modelfiles.checks.rules > docs/modelfile-rules.md

Ids are stable: a rule that goes away leaves a gap.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

ERROR, WARNING = "error", "warning"


class Rule(NamedTuple):
    """What is wrong, what Ollama itself does about it (measured with 0.33 unless said), and what to do."""

    severity: str
    title: str
    ollama: str
    fix: str


@dataclass(frozen=True)
class Finding:
    """A rule that was broken. `line` and `column` count from 1; 0 where they mean nothing."""

    rule: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0

    @property
    def severity(self) -> str:
        return RULES[self.rule].severity

    def as_json(self) -> dict[str, Any]:
        return {"severity": self.severity, **asdict(self)}

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part)
        return f"{place + ': ' if place else ''}{self.severity} {self.rule}: {self.message}"


def exit_code(findings: list[Finding]) -> int:
    """0 for none, 1 for warnings only, 2 if there is an error."""
    severities = {finding.severity for finding in findings}
    return 2 if ERROR in severities else 1 if severities else 0


_GENERATE = "Run `lensmith modelfile generate`: its stage folder has this repaired."


def is_repaired(finding: Finding) -> bool:
    """Whether `generate` writes a stage folder without this fault."""
    return RULES[finding.rule].fix == _GENERATE


RULES: dict[str, Rule] = {
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
        _GENERATE,
    ),
    "MF205": Rule(
        ERROR,
        "The rope settings are only where transformers 5 looks",
        "Since 0.30 create fails with `failed to validate GGUF with llama-quantize`; before, the import had a rope "
        "base of 0 and answered nonsense.",
        _GENERATE,
    ),
    "MF206": Rule(
        ERROR,
        "The text settings are nested where Ollama reads them at the root",
        "Create says `success` with a block_count of 0; running it fails.",
        _GENERATE,
    ),
    "MF207": Rule(
        ERROR,
        "No weight file is called model*.safetensors",
        "Says `no Modelfile or safetensors files found`.",
        _GENERATE,
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
        _GENERATE,
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
    "MF301": Rule(
        ERROR,
        "The Modelfile does not parse",
        "Refuses it with the same message (it counts \\r\\n as two lines).",
        "Correct the line; values over several lines need triple quotes.",
    ),
    "MF302": Rule(
        ERROR,
        "An unknown parameter",
        "Says `unknown parameter`.",
        "See https://docs.ollama.com/modelfile for the names; there is none for mmproj.",
    ),
    "MF303": Rule(
        ERROR,
        "A parameter's value has the wrong type",
        "Says `invalid int value`, `invalid float value` or `invalid bool value`.",
        "Write a plain number; 4096.0 is no int, and a comment cannot follow a value.",
    ),
    "MF304": Rule(WARNING, "A deprecated parameter", "Warns and drops it.", "Delete the line."),
    "MF305": Rule(
        WARNING,
        "A # comment after a value",
        "Takes it as part of the value: comments stand on lines of their own.",
        "Move the comment to its own line.",
    ),
    "MF306": Rule(
        WARNING,
        "A character that Ollama deletes",
        "Deletes it without a word: U+3000, U+00A0, zero-width and other unprintable characters.",
        "Replace it, or create the model with `lensmith modelfile push`, which keeps it.",
    ),
    "MF307": Rule(
        WARNING,
        "An escape such as \\n in a value",
        "Knows no escapes: it stays a backslash and an n.",
        "Write a real newline between triple quotes.",
    ),
    "MF308": Rule(WARNING, "A directive that a later one replaces", "The last one wins.", "Keep one."),
    "MF309": Rule(
        ERROR,
        "FROM or ADAPTER names a path that does not exist",
        "Takes it as the name of a model and says `invalid model name`.",
        "Correct the path; it is relative to the Modelfile.",
    ),
    "MF310": Rule(
        ERROR,
        "FROM names a folder that Ollama finds no model in",
        "Says `no Modelfile or safetensors files found`.",
        "Name the folder with model*.safetensors or *.gguf.",
    ),
    "MF311": Rule(
        ERROR,
        "An unknown RENDERER or PARSER",
        "Create says `success`; every request fails with `unknown renderer`.",
        "Use a name that Ollama has, such as qwen3-vl-instruct.",
    ),
    "MF312": Rule(
        ERROR,
        "REQUIRES is no version",
        "Says `requires must be a valid semver`.",
        "Write it like 0.30.0.",
    ),
    "MF313": Rule(
        ERROR,
        "A directive newer than the Ollama it is for",
        "An older version refuses the whole Modelfile.",
        "Drop the directive or ask for a newer Ollama.",
    ),
    "MF314": Rule(
        ERROR,
        "TEMPLATE does not parse as a Go template",
        "Says `template: ...` at create.",
        "Correct the template; `lensmith modelfile generate` writes one that works.",
    ),
    "MF401": Rule(
        ERROR,
        "TEMPLATE lost its newlines",
        "Accepts it; the model sees prompts unlike any it was trained on.",
        "Put a newline after <|im_start|>ROLE and after <|im_end|>.",
    ),
    "MF402": Rule(
        WARNING,
        "TEMPLATE offers no tools",
        "Answers 400 `does not support tools` to requests with tools, and drops tool results.",
        "Use the TEMPLATE that `generate` writes, or a RENDERER.",
    ),
    "MF403": Rule(
        WARNING,
        "Ollama will not use this TEMPLATE",
        "Since 0.30 it prefers the chat template inside the model when that one has more capabilities, and then puts "
        "images after the text.",
        "Use the TEMPLATE that `generate` writes (it has .Tools and .ToolCalls), or a RENDERER.",
    ),
    "MF404": Rule(
        ERROR,
        "num_ctx cannot hold the images",
        "Since 0.30 a Qwen-VL image takes 1024 to 4096 tokens; it answers 400 `exceeds the available context size`.",
        "Raise num_ctx to what the message says, or say how many images with --images-per-request.",
    ),
    "MF405": Rule(
        WARNING,
        "No repeat_penalty",
        "Its default was 1.1 until 0.32.9 and is 1.0 since 0.32.10: answers change with the version.",
        "Add `PARAMETER repeat_penalty 1.0`.",
    ),
    "MF406": Rule(
        WARNING,
        "A token that ends an answer is no stop",
        "Stops only at the stops given: a model that ends with the other token rambles on into a made-up turn.",
        "Add a stop for every eos_token_id.",
    ),
    "MF407": Rule(
        WARNING,
        "No num_ctx",
        "Takes 4096, 32768 or 262144 by the GPU's memory: the same Modelfile works here and fails there.",
        "Add `PARAMETER num_ctx`.",
    ),
    "MF408": Rule(
        WARNING,
        "RENDERER does not fit the model's chat template",
        "A thinking renderer on a model that answers directly puts the whole answer into `thinking`.",
        "Use the renderer that `lensmith modelfile inspect` names.",
    ),
    "MF409": Rule(
        WARNING,
        "TEMPLATE beside RENDERER",
        "The renderer makes the prompt; TEMPLATE is ignored.",
        "Keep `TEMPLATE {{ .Prompt }}` or drop the RENDERER.",
    ),
    "MF410": Rule(
        WARNING,
        "The prompt differs from the model's chat template",
        "Sends what TEMPLATE or RENDERER makes; it compares nothing.",
        "See `lensmith modelfile render` for the difference.",
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
}  # fmt: skip


def markdown() -> str:
    """The page docs/modelfile-rules.md."""
    lines = [
        "# Modelfile rules",
        "",
        "What `lensmith modelfile doctor` (MF1xx, MF2xx, MF5xx) and `lensmith modelfile lint` (MF3xx, MF4xx) check.",
        "Both exit with 0 for no finding, 1 for warnings and 2 for errors; `--json` prints the same for programs.",
        "",
        "Written by `python -m modelfiles.checks.rules`; edit `modelfiles/checks/rules.py`.",
    ]
    for name, rule in RULES.items():
        lines += ["", f"## {name}: {rule.title}", "", f"*{rule.severity}*. Ollama: {rule.ollama}", "", rule.fix]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
