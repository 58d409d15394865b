# syntax=docker/dockerfile:1
# Fine-tuning: torch from PyPI brings CUDA with it, so a slim image will do.
# docker build -f deploy/docker/trainer.Dockerfile -t lensmith/trainer .
FROM python:3.12-slim
# gcc: Triton, under bitsandbytes and torch, compiles its launchers with it.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends gcc libc6-dev && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --system --create-home --uid 10001 lensmith
RUN python -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir "uv>=0.8,<1"
ENV UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 UV_LINK_MODE=copy
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE lensmith.py ./
COPY finetune finetune
COPY gateway gateway
COPY modelfiles modelfiles
RUN /opt/uv/bin/uv venv /opt/lensmith && \
    /opt/uv/bin/uv pip install --python /opt/lensmith --constraint requirements.lock ".[finetune]"
ENV PATH=/opt/lensmith/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["lensmith"]
CMD ["--help"]
