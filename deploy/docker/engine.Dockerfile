# syntax=docker/dockerfile:1
# LMDeploy with Lensmith's plan of it, for one model folder mounted at /model and one or more NVIDIA GPUs.
# docker build -f deploy/docker/engine.Dockerfile -t lensmith/engine .
ARG LMDEPLOY_IMAGE=openmmlab/lmdeploy:v0.18.0-cu12
# hadolint ignore=DL3006
FROM ${LMDEPLOY_IMAGE}
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE lensmith.py ./
COPY finetune finetune
COPY gateway gateway
COPY modelfiles modelfiles
# Not constrained by the lock: LMDeploy's image brings torch and its kin, and Lensmith's own needs are few.
RUN python3 -m pip install --no-cache-dir . && \
    python3 -m pip check && \
    useradd --system --create-home --uid 10001 lensmith
COPY --chmod=0755 deploy/docker/engine.sh /usr/local/bin/engine
USER 10001:10001
WORKDIR /home/lensmith
# Triton compiles its kernels into the home directory: mount a volume there and the next start is faster.
ENV HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
EXPOSE 23333
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
  CMD ["python3", "-c", "import urllib.request; urllib.request.build_opener(urllib.request.ProxyHandler({})).open('http://127.0.0.1:23333/health', timeout=4)"]
ENTRYPOINT ["engine"]
