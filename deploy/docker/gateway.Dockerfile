# syntax=docker/dockerfile:1
# The gateway alone: no torch, no GPU. docker build -f deploy/docker/gateway.Dockerfile -t lensmith/gateway .
FROM python:3.12-slim AS build
RUN python -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir "uv>=0.8,<1"
ENV UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1 UV_LINK_MODE=copy
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE lensmith.py ./
COPY finetune finetune
COPY gateway gateway
COPY modelfiles modelfiles
# Constrained by the lock: the versions that were tested, each checked against its hash.
RUN /opt/uv/bin/uv venv /opt/lensmith && \
    /opt/uv/bin/uv pip install --python /opt/lensmith --constraint requirements.lock ".[otel,redis]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin lensmith
COPY --from=build /opt/lensmith /opt/lensmith
ENV PATH=/opt/lensmith/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000 9000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
  CMD ["python", "-c", "import urllib.request; urllib.request.build_opener(urllib.request.ProxyHandler({})).open('http://127.0.0.1:8000/health', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["lensmith", "serve", "--host", "0.0.0.0"]
CMD ["--config", "/etc/lensmith/gateway.yaml"]
