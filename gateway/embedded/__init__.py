"""The embedded engine: a process around transformers' `generate`, for machines without a GPU, CI, reference answers.

    python -m gateway.embedded MODEL_DIR --port PORT --served-model-name NAME

It speaks the part of OpenAI's HTTP API that the gateway uses: POST /v1/chat/completions and /v1/completions (plain and
streamed), GET /v1/models, /health and /metrics. Fields that it does not support it refuses with a 400 that names them.

A request goes `app` (routes) -> `protocol` (the body is checked) -> `generation` (chat template and images in a thread
pool; sampling and `generate` in one thread) -> `choices` (JSON or server-sent events).

Batches are fixed: each call of `generate` takes the sequences that wait at that moment, and later ones join the next
batch. A sequence that ends early is answered at once; its row stays empty until the longest one of its batch has ended.
"""
