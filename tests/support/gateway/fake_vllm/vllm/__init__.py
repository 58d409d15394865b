"""A vllm without a GPU: 0.33.0, read from its wheel."""
