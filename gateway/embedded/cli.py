"""The embedded engine's command line."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

import uvicorn

from gateway.embedded.app import EmbeddedServer
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError


def main() -> None:
    """The command line. Exits with 1 and one sentence on stderr if the model cannot be loaded or the port is taken."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway.embedded", description="Serve a model folder on this machine."
    )
    parser.add_argument("model_dir", metavar="MODEL_DIR")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free port, which is printed")
    parser.add_argument("--served-model-name", help="default: the folder's name")
    parser.add_argument(
        "--adapters", nargs="+", default=[], metavar="NAME=PATH", help="LoRA adapters, served beside the base"
    )
    parser.add_argument("--max-batch-size", type=int, default=8, help="most choices in a batch, and the largest n")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="auto: float32 on a CPU, the folder's own on a GPU",
    )
    options = parser.parse_args()
    if options.max_batch_size < 1:
        parser.error("--max-batch-size must be at least 1")
    try:
        folder = ModelFolder.open(options.model_dir)
        listener = socket.create_server((options.host, options.port))
    except ModelFolderError as error:
        sys.exit(f"Error: {error}")
    except (OSError, OverflowError) as error:
        sys.exit(f"Error: cannot listen on {options.host}:{options.port}: {error}.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Torch's threads otherwise spin while they wait for work and take the cores from the gateway and other processes:
    # on 2 busy cores, waiting passively answered 3 to 6 times as many requests/s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    server = EmbeddedServer(
        folder,
        options.served_model_name or folder.name,
        adapters={name: Path(path) for name, _, path in (given.partition("=") for given in options.adapters)},
        max_batch_size=options.max_batch_size,
        dtype=options.dtype,
        key=os.environ.get("LENSMITH_ENGINE_KEY", ""),
    )
    config = uvicorn.Config(
        server.app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, server_header=False
    )
    server.uvicorn = uvicorn.Server(config)
    print(f"Listening on http://{options.host}:{listener.getsockname()[1]}", flush=True)
    server.uvicorn.run(sockets=[listener])
    if server.failure is not None:
        sys.stderr.write(f"Error: {server.failure}\n")
    # Not sys.exit: a thread may still be inside torch, and the interpreter would wait for it or crash on its way out.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if server.failure else 0)
