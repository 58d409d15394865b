"""Ollama's API (https://github.com/ollama/ollama/blob/main/docs/api.md), so that programs written for it work here.

Its chats and prompts become chat completions and go the one way that all requests go.
"""
