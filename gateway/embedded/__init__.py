"""The embedded engine: a process around transformers' `generate`, for machines without a GPU, CI, reference answers.

    python -m gateway.embedded MODEL_DIR --port PORT --served-model-name NAME

It speaks the part of OpenAI's HTTP API that the gateway uses: POST /v1/chat/completions (plain and streamed), GET
/v1/models, /health and /metrics. What it does not do (tools, JSON output, remote images, video, ...) it refuses with a
400 that names the field.

A request goes `protocol` (parse) -> `prompt` (chat template, images; in a thread pool) -> `engine` (waiting list and
`generate`, in one thread, with `sampling` and `text` for each row) -> `server` (JSON or server-sent events).

Batches are fixed: each call of `generate` takes what waits at that moment, and rows that arrive later join the next
batch. A row that ends early answers at once; its place stays empty until the longest row of its batch has ended.
"""
