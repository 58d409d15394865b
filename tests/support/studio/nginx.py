"""A real nginx in front of a studio, with a prefix that it strips."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process

# As a reader of its documentation would write it: no header is set, no setting of the studio's is needed.
CONFIG = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port};
    location /tools/lens/ {{
      proxy_pass {upstream}/;
      proxy_http_version 1.1;
      proxy_set_header Upgrade "";  # no WebSockets
    }}
  }}
}}
"""


def nginx(folder: Path, upstream: str) -> tuple[Process, str]:
    """A running nginx and the address under which it shows the studio; skips without nginx on the machine."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("there is no nginx on this machine")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, upstream=upstream))
    process = Process([program, "-c", str(config), "-e", "stderr"], port)
    process.wait_until("/tools/lens/login", 200)
    return process, f"http://127.0.0.1:{port}/tools/lens/"
