"""The RENDERER and PARSER names that Ollama 0.33 knows: two lists, of which neither holds the other.

Sources: model/renderers/renderer.go and model/parsers/parsers.go.
"""

KNOWN_RENDERERS = frozenset({
    "qwen3-coder", "qwen3-vl-instruct", "qwen3-vl-thinking", "qwen3.5", "qwen3.8", "ornith", "cogito", "deepseek3.1",
    "olmo3", "olmo3.1", "olmo3-think", "olmo3-32b-think", "nemotron-3-nano", "nemotron-3.5-nano", "gemma4",
    "gemma4-small", "gemma4-large", "functiongemma", "glm-4.7", "glm-ocr", "lfm2", "lfm2-thinking", "laguna",
    "poolside-v1", "cohere", "glimmer",
})  # fmt: skip
KNOWN_PARSERS = frozenset({
    "qwen3", "qwen3-thinking", "qwen3.5", "ornith", "qwen3-coder", "qwen3-vl-instruct", "qwen3-vl-thinking",
    "ministral", "passthrough", "harmony", "cogito", "deepseek3", "olmo3", "olmo3-think", "nemotron-3-nano",
    "functiongemma", "glm-4.7", "gemma4", "gemma4-no-thinking", "glm-ocr", "lfm2", "lfm2-thinking", "laguna",
    "poolside-v1", "cohere", "glimmer",
})  # fmt: skip
