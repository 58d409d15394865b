"""Rules of `lint`: what Ollama refuses or changes (MF3xx), and what will not work (MF4xx)."""

from __future__ import annotations

from modelfiles.checks.rule import ERROR, WARNING, Rule

MODELFILE_RULES: dict[str, Rule] = {
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
        "FROM, ADAPTER or DRAFT names a path that does not exist",
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
    "MF315": Rule(
        ERROR,
        "TEMPLATE calls a template that nothing defines",
        "Create says `success`; every request fails with `template ... not defined`.",
        "Add {{ define }} for it, or correct the name.",
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
    "MF411": Rule(
        WARNING,
        "Neighbouring images are taken for one",
        "From 0.30.9 to 0.33.0 the llama.cpp inside takes two neighbouring images of equal size for frames of a video: "
        "two cost as many tokens as one, the second is invisible, and eight become four.",
        "Begin the message with an `[img]` for each image, a blank between them; or use another version. Say how many "
        "images a request has with --images-per-request.",
    ),
}
