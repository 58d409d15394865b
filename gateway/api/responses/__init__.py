"""OpenAI's Responses API (https://platform.openai.com/docs/api-reference/responses), without a store.

Requests become chat completions and go the one way that all requests go. Nothing is kept between them, so that a
conversation is sent whole each time, as `input`.
"""
