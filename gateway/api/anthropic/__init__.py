"""Anthropic's Messages API (https://docs.anthropic.com/en/api/messages), so that programs written for it work here.

Its messages become chat completions and go the one way that all requests go.
"""
