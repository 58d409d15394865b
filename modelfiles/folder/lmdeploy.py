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
        *("Kimi_K25ForConditionalGeneration", "Qwen3OmniMoeForConditionalGeneration"),
        *("InternS1ForConditionalGeneration", "InternS1ProForConditionalGeneration"),
        *("InternS1_1_ForConditionalGeneration", "InternS2PreviewForConditionalGeneration"),
        *("InternS2MobiusForConditionalGeneration", "MetaMoeForConditionalGeneration", "CogVLMForCausalLM"),
    )
)
# Those that its other engine has too (lmdeploy/turbomind/supported_models.py).
TURBOMIND_ARCHITECTURES = frozenset(
    (
        *("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen3_5ForConditionalGeneration"),
        *("Qwen3_5MoeForConditionalGeneration", "InternVLChatModel", "InternVLForConditionalGeneration"),
        *("InternS1ForConditionalGeneration", "InternS2PreviewForConditionalGeneration"),
        "InternS2MobiusForConditionalGeneration",
    )
)
