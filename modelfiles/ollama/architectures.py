"""The table of model families: everything Ollama treats differently from one architecture to the next, as data.

Sources: Ollama's convert/*.go, model/renderers and model/parsers; the tensor names are those that the published
checkpoints have and transformers 4.57 and 5 write. What a row cannot know is read from the folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from modelfiles.ollama.versions import LLAMA_SERVER, Version

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Architecture:
    """One row.

    since: the first Ollama that imports the family's safetensors, None if none does; gguf_since: the same for a GGUF
    pair. text_fields: where Ollama looks for the language model's settings in config.json ("text_config" or "root").
    renderers: (RENDERER, PARSER) for instruct and for thinking models. template: the Go template that equals the chat
    template, a file of templates/. image_tokens: what an image costs, None for Qwen's rule (by its size).
    resized_by_ollama: whether Ollama >= 0.30 sizes images to 1024 tokens and more, whatever the model's limits are.
    reads_rope_parameters: whether Ollama knows transformers 5's place for the rope settings.
    experts_transposed: whether converters transpose the experts' weights, which transformers 5 saves transposed.
    tensors: names every checkpoint has; {layer} and {block} run over the text layers and vision blocks.
    wrong_prefixes: prefixes Ollama does not map, and what is wrong with them.
    """

    name: str
    architectures: tuple[str, ...]
    since: Version | None
    template: str
    text_fields: str = "text_config"
    renderers: dict[str, tuple[str, str]] = field(default_factory=dict)
    gguf_since: Version = LLAMA_SERVER
    needed_files: tuple[str, ...] = ("tokenizer.json", "preprocessor_config.json")
    image_tokens: int | None = None
    resized_by_ollama: bool = False
    mrope_section: tuple[int, ...] = ()
    reads_rope_parameters: bool = False
    experts_transposed: bool = False
    tensors: tuple[str, ...] = ()
    wrong_prefixes: dict[str, str] = field(default_factory=dict)
    traps: tuple[str, ...] = ()

    @property
    def routes(self) -> tuple[str, ...]:
        """The ways into Ollama, the default one first."""
        return ("safetensors", "gguf", "adapter-gguf") if self.since else ("gguf", "adapter-gguf")

    def template_text(self) -> str:
        return (TEMPLATES / f"{self.template}.gotmpl").read_text(encoding="utf-8")


def _each(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(prefix + name for name in names)


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))


_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_ATTENTION = _each("self_attn.", "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
_QK_NORMS = _each("self_attn.", "q_norm.weight", "k_norm.weight")
_QKV_BIASES = _each("self_attn.", "q_proj.bias", "k_proj.bias", "v_proj.bias")
_MLP = _each("mlp.", "gate_proj.weight", "up_proj.weight", "down_proj.weight")
_EXPERTS = _each("mlp.", "gate.weight", "experts.gate_up_proj", "experts.down_proj")

_QWEN3_TOWER = (
    *_each("model.visual.", "patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed.weight"),
    *_each("model.visual.blocks.{block}.", *_both("norm1", "norm2", "attn.qkv", "attn.proj")),
    *_each("model.visual.blocks.{block}.", *_both("mlp.linear_fc1", "mlp.linear_fc2")),
    *_each("model.visual.merger.", *_both("norm", "linear_fc1", "linear_fc2")),
)
_DEEPSTACK = _each("model.visual.deepstack_merger_list.{deepstack}.", *_both("norm", "linear_fc1", "linear_fc2"))
_QWEN3_TEXT = ("model.language_model.embed_tokens.weight", "model.language_model.norm.weight")
_QWEN3_LAYER = "model.language_model.layers.{layer}."
_QWEN2_TEXT = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    *_each("model.layers.{layer}.", *_NORMS, *_ATTENTION, *_QKV_BIASES, *_MLP),
)
_QWEN2_TOWER = (
    "visual.patch_embed.proj.weight",
    "visual.merger.ln_q.weight",
    *_each("visual.merger.", *_both("mlp.0", "mlp.2")),
    *_each("visual.blocks.{block}.", "norm1.weight", "norm2.weight", *_both("attn.qkv", "attn.proj")),
)
_OLD_NAMES = {
    "language_model.model.": "the names of transformers before 4.52",
    "visual.": "the names of transformers before 4.52",
    "base_model.model.": "the names of an unmerged PEFT model",
}

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        name="qwen3_vl",
        architectures=("Qwen3VLForConditionalGeneration",),
        since=(0, 12, 7),
        template="chatml",
        resized_by_ollama=True,
        renderers={
            "instruct": ("qwen3-vl-instruct", "qwen3-vl-instruct"),
            "thinking": ("qwen3-vl-thinking", "qwen3-vl-thinking"),
        },
        mrope_section=(24, 20, 20),
        tensors=(
            *_QWEN3_TEXT,
            *_each(_QWEN3_LAYER, *_NORMS, *_ATTENTION, *_QK_NORMS, *_MLP),
            *_QWEN3_TOWER,
            *_DEEPSTACK,
        ),
        wrong_prefixes=_OLD_NAMES,
        traps=(
            "The renderer qwen3-vl-instruct puts a space between image and text that training never had.",
            "Images cost 1024 to 4096 tokens each, whatever their size was in training.",
            "There is no renderer called qwen3-vl or qwen3vl: create succeeds, every request fails.",
        ),
    ),
    Architecture(
        name="qwen3_vl_moe",
        architectures=("Qwen3VLMoeForConditionalGeneration",),
        since=(0, 12, 7),
        template="chatml",
        resized_by_ollama=True,
        experts_transposed=True,
        renderers={
            "instruct": ("qwen3-vl-instruct", "qwen3-vl-instruct"),
            "thinking": ("qwen3-vl-thinking", "qwen3-vl-thinking"),
        },
        mrope_section=(24, 20, 20),
        tensors=(
            *_QWEN3_TEXT,
            *_each(_QWEN3_LAYER, *_NORMS, *_ATTENTION, *_QK_NORMS, *_EXPERTS),
            *_QWEN3_TOWER,
            *_DEEPSTACK,
        ),
        wrong_prefixes=_OLD_NAMES,
        traps=("Ollama transposes the experts' weights; transformers 5 already saves them transposed.",),
    ),
    Architecture(
        name="qwen2_5_vl",
        architectures=("Qwen2_5_VLForConditionalGeneration",),
        since=(0, 7, 0),
        template="chatml",
        resized_by_ollama=True,
        text_fields="root",
        mrope_section=(16, 24, 24),
        tensors=(
            *_QWEN2_TEXT,
            *_QWEN2_TOWER,
            *_each("visual.blocks.{block}.", *_both("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
        ),
        wrong_prefixes={
            "model.language_model.": "the names of transformers' modules, not of its checkpoints",
            "base_model.model.": "the names of an unmerged PEFT model",
        },
        traps=("transformers 5 nests what Ollama reads at the root of config.json: the import has no layers.",),
    ),
    Architecture(
        name="qwen2_vl",
        architectures=("Qwen2VLForConditionalGeneration",),
        since=None,
        template="chatml",
        resized_by_ollama=True,
        text_fields="root",
        mrope_section=(16, 24, 24),
        tensors=(
            *_QWEN2_TEXT,
            *_QWEN2_TOWER,
            "visual.merger.ln_q.bias",
            *_each("visual.blocks.{block}.", "norm1.bias", "norm2.bias", *_both("mlp.fc1", "mlp.fc2")),
        ),
        traps=("Ollama imports it from GGUF only.",),
    ),
    Architecture(
        name="qwen3_5",
        architectures=("Qwen3_5ForConditionalGeneration",),
        since=(0, 17, 1),
        template="chatml",
        renderers={"instruct": ("qwen3.5", "qwen3.5"), "thinking": ("qwen3.5", "qwen3.5")},
        reads_rope_parameters=True,
        tensors=(
            *_QWEN3_TEXT,
            *_each(_QWEN3_LAYER, *_NORMS, *_MLP),
            *_each("model.language_model.layers.{full_attention}.", *_ATTENTION, *_QK_NORMS),
            *_each(
                "model.language_model.layers.{linear_attention}.linear_attn.",
                *("A_log", "conv1d.weight", "dt_bias", "in_proj_a.weight", "in_proj_b.weight", "in_proj_qkv.weight"),
                *("in_proj_z.weight", "norm.weight", "out_proj.weight"),
            ),
            *_QWEN3_TOWER,
        ),
        wrong_prefixes=_OLD_NAMES,
        traps=("Its published models think by default: use the renderer unless the fine-tune unlearned it.",),
    ),
    Architecture(
        name="qwen3_5_moe",
        architectures=("Qwen3_5MoeForConditionalGeneration",),
        since=(0, 17, 1),
        template="chatml",
        renderers={"instruct": ("qwen3.5", "qwen3.5"), "thinking": ("qwen3.5", "qwen3.5")},
        reads_rope_parameters=True,
        tensors=(*_QWEN3_TEXT, *_each(_QWEN3_LAYER, *_NORMS, *_EXPERTS), *_QWEN3_TOWER),
        wrong_prefixes=_OLD_NAMES,
        traps=("Its published models think by default: use the renderer unless the fine-tune unlearned it.",),
    ),
    Architecture(
        name="gemma3",
        architectures=("Gemma3ForConditionalGeneration",),
        since=(0, 6, 0),
        template="gemma3",
        needed_files=("tokenizer.json",),
        image_tokens=256,
        tensors=(
            *_each("language_model.model.", "embed_tokens.weight", "norm.weight"),
            *_each("language_model.model.layers.{layer}.", *_NORMS, *_ATTENTION, *_QK_NORMS, *_MLP),
            *_each("language_model.model.layers.{layer}.", "pre_feedforward_layernorm.weight"),
            *_each("language_model.model.layers.{layer}.", "post_feedforward_layernorm.weight"),
            *_each("multi_modal_projector.", "mm_input_projection_weight", "mm_soft_emb_norm.weight"),
            *_each("vision_tower.vision_model.", *_both("embeddings.patch_embedding", "post_layernorm")),
            "vision_tower.vision_model.embeddings.position_embedding.weight",
            *_each(
                "vision_tower.vision_model.encoder.layers.{block}.",
                *_both("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
                *_both("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
            ),
        ),
        wrong_prefixes={
            "vision_tower.embeddings.": "the names of transformers 5, which Ollama leaves unmapped",
            "vision_tower.encoder.": "the names of transformers 5, which Ollama leaves unmapped",
            "base_model.model.": "the names of an unmerged PEFT model",
        },
        traps=("Saved by transformers 5 its vision tower has names that Ollama imports without using them.",),
    ),
)

# Any other vision-language model whose chat template is ChatML; llama.cpp's converter decides whether it can.
CHATML = Architecture(
    name="chatml",
    architectures=(),
    since=None,
    template="chatml",
    needed_files=("tokenizer.json",),
    traps=("Not in the table: only the GGUF route, and only if llama.cpp converts it.",),
)


# What Ollama's converter also has (convert/convert.go), but no Modelfile is written for here: none of their chat
# templates has been compared with what Ollama sends.
ALSO_IMPORTED: dict[str, Version] = {
    "Gemma4ForConditionalGeneration": (0, 20, 0),
    "Gemma3nForConditionalGeneration": (0, 12, 0),
    "Mistral3ForConditionalGeneration": (0, 6, 5),
    "Lfm2VlForConditionalGeneration": (0, 17, 1),
    "GlmOcrForConditionalGeneration": (0, 15, 5),
    "Llama4ForConditionalGeneration": (0, 12, 0),
}


def find_architecture(name: str) -> Architecture | None:
    """The row of config.json's architecture, or None."""
    return next((row for row in ARCHITECTURES if name in row.architectures), None)


def expand_tensors(architecture: Architecture, counts: dict[str, range | list[int]]) -> list[str]:
    """The names of `architecture.tensors` with {layer}, {block}, ... running over `counts`."""
    names = []
    for pattern in architecture.tensors:
        slot = re.search(r"\{(\w+)\}", pattern)
        names += [pattern.replace(slot[0], str(i)) for i in counts[slot[1]]] if slot else [pattern]
    return names
