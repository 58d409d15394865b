"""Greedy answers of a Qwen-VL model to many prompts."""
