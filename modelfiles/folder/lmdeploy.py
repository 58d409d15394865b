"""Which model architectures LMDeploy 0.18 loads, as its own tables say."""

from __future__ import annotations

# Architectures with images that its PyTorch engine has (lmdeploy/pytorch/models/module_map.py).
PYTORCH_ARCHITECTURES = frozenset(
    (
        *("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration"),
        *("Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForConditionalGeneration"),
        *("Qwen3_5MoeForConditionalGeneration", "InternVLChatModel", "InternVLForConditionalGeneration"),
        *("Gemma3ForConditionalGeneration", "Glm4vForConditionalGeneration", "LlavaForConditionalGeneration"),
        *("LlavaNextForConditionalGeneration", "DeepseekVLV2ForCausalLM", "Llama4ForConditionalGeneration"),
        *("Phi3VForCausalLM", "MiniCPMV", "MllamaForConditionalGeneration", "KimiK25ForConditionalGeneration"),
    )
)
# Model types with images that its other engine has too (lmdeploy/turbomind/supported_models.py).
TURBOMIND_MODEL_TYPES = frozenset(("qwen2_vl", "qwen2_5_vl"))
