"""The embedded engine for several model folders in one process: torch is imported once. Arguments: FOLDER PORT ..."""

from __future__ import annotations

import sys
import threading
import time

import uvicorn

from gateway.embedded.app import EmbeddedServer
from modelfiles.folder.model_folder import ModelFolder

if __name__ == "__main__":
    threads = []
    for folder, port in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        server = EmbeddedServer(ModelFolder.open(folder), "x", adapters={}, max_batch_size=8, dtype="auto", key="")
        server.uvicorn = uvicorn.Server(uvicorn.Config(server.app, port=int(port), log_level="warning"))
        threads.append(threading.Thread(target=server.uvicorn.run, daemon=True))
        threads[-1].start()
        while server.batcher is None:  # one after another: transformers does not load in several threads at once
            time.sleep(0.05)
    for thread in threads:
        thread.join()
