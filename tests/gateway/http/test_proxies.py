"""A real nginx, which speaks HTTP/1.0 to what is behind it unless told otherwise, and HAProxy before the gateway."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.gateway.processes import Process, free_port, lensmith_serve, until
from tests.support.gateway.requests import CHAT, ask, keys_command, picture

PROGRAMS = ("nginx", "haproxy")
pytestmark = pytest.mark.skipif(
    any(shutil.which(program) is None for program in PROGRAMS), reason="needs: apt-get install nginx haproxy"
)

# Lines of nginx' `location`; all else is as it comes.
NGINX = {
    "nginx": "",
    "nginx, HTTP/1.1": "proxy_http_version 1.1;",
    "nginx, body passed on as it comes": "proxy_request_buffering off;",
    "nginx, HTTP/1.1, body passed on as it comes": "proxy_http_version 1.1; proxy_request_buffering off;",
}
PROXIES = [*NGINX, "HAProxy"]
LARGE, TOO_LARGE = "x" * 3_000_000, "x" * 5_000_000


@pytest.fixture(scope="module")
def gateway(engine: Process, key_file: Path, add: Callable[..., str]) -> Iterator[tuple[Process, str]]:
    secret = add("proxied")
    limits = ("--max-body-bytes", "4000000", "--max-bytes-in-flight", "1500000", "--sse-keepalive", "1")
    with lensmith_serve("--engine", engine.url, "--keys", str(key_file), *limits) as process:
        process.wait_until("/ready", 200)
        yield process, secret


@pytest.fixture(scope="module")
def proxies(gateway: tuple[Process, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URL of each."""
    folder = tmp_path_factory.mktemp("proxies")
    ports = {name: free_port() for name in PROXIES}
    target = f"127.0.0.1:{gateway[0].port}"
    servers = "".join(
        f"server {{ listen 127.0.0.1:{ports[name]}; client_max_body_size 64m;"
        f" location / {{ proxy_pass http://{target}; {lines} }} }}\n"
        for name, lines in NGINX.items()
    )
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off; pid {folder}/nginx.pid; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off; {temporary} {servers} }}\n"
    )
    (folder / "haproxy.cfg").write_text(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
        f"frontend front\n  bind 127.0.0.1:{ports['HAProxy']}\n  default_backend back\n"
        f"backend back\n  server gateway {target}\n"
    )
    with (
        Process(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)], ports["nginx"]) as nginx,
        Process(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], ports["HAProxy"]) as haproxy,
    ):
        for process in (nginx, haproxy):
            process.wait_until("/health", 200)
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}


def post(url: str, secret: str, content: str, **headers: str) -> httpx.Response:
    body = {"model": "fake", "messages": ask(content)}
    return httpx.post(url + CHAT, json=body, headers={"authorization": f"Bearer {secret}", **headers}, timeout=60)


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("status", [401, 413, 415, 429, 503])
def test_a_refusal_of_a_large_body_arrives(
    gateway: tuple[Process, str], proxies: dict[str, str], key_file: Path, proxy: str, status: int
) -> None:
    """It is decided while the body still comes; a connection that were just closed would be a 502 of the proxy's."""
    url, secret = proxies[proxy], gateway[1]
    if status == 429:
        name = f"limited {proxy}"
        secret = keys_command("add", name, "--file", str(key_file), "--requests-per-minute", "1").output.strip()
        until("the key is known", lambda: post(url, secret, "hi").status_code == 200)
    for _ in range(3):  # it must not be luck
        if status == 401:
            answer = post(url, "wrong", LARGE)
        elif status == 413:
            answer = post(url, secret, TOO_LARGE)
        elif status == 415:
            answer = post(url, secret, LARGE, **{"content-type": "text/plain"})
        else:
            answer = post(url, secret, LARGE)
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"]
    assert post(url, gateway[1], "count 2").status_code == 200


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_stream_comes_piece_by_piece_and_ends(
    gateway: tuple[Process, str], proxies: dict[str, str], proxy: str
) -> None:
    process, secret = gateway
    headers = {"authorization": f"Bearer {secret}"}
    body = {"model": "fake", "messages": ask("count 20 0.05"), "stream": True}
    with httpx.stream("POST", proxies[proxy] + CHAT, json=body, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        metrics = httpx.get(process.url + "/metrics", headers=headers).text
        assert 'lensmith_requests_running{model="fake"} 1.0' in metrics, "the proxy kept the beginning until the end"
        rest = [line for line in lines if line]
    assert first.startswith("data: ")
    assert rest[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in rest[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == "".join(f"{number} " for number in range(20))


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_client_that_leaves_the_proxy_ends_the_work(
    gateway: tuple[Process, str], proxies: dict[str, str], proxy: str
) -> None:
    process, secret = gateway
    headers = {"authorization": f"Bearer {secret}"}
    body = {"model": "fake", "messages": ask("count 1000 0.05"), "stream": True}
    with httpx.stream("POST", proxies[proxy] + CHAT, json=body, headers=headers, timeout=60) as answer:
        next(answer.iter_lines())

    def ended() -> bool:
        metrics = httpx.get(process.url + "/metrics", headers=headers).text
        return 'lensmith_requests_running{model="fake"} 0.0' in metrics

    until("the answer is aborted", ended)


@pytest.mark.parametrize("proxy", PROXIES)
def test_images_pass(gateway: tuple[Process, str], proxies: dict[str, str], proxy: str) -> None:
    uri = picture("JPEG", (900, 700))
    content = [{"type": "text", "text": "echo"}, {"type": "image_url", "image_url": {"url": uri}}]
    body = {"model": "fake", "messages": [{"role": "user", "content": content}]}
    headers = {"authorization": f"Bearer {gateway[1]}"}
    answer = httpx.post(proxies[proxy] + CHAT, json=body, headers=headers, timeout=60)
    assert uri in answer.json()["choices"][0]["message"]["content"]
