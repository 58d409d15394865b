"""Who gets in, and what a hostile page, name or client cannot do."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from gateway.tenants.keys import digest, new_secret, write_keys
from gateway.tenants.limits import Key
from modelfiles.hardware.python_child import free_port
from studio.app import make_app
from studio.security.access import KeyAccess, OpenAccess, PasswordAccess, TokenAccess
from studio.security.attempts import FAILURES, SECONDS, Attempts
from studio.security.sessions import MAX_AGE, Sessions
from studio.web.render import Studio
from tests.support.paths import ROOT
from tests.support.studio.applications import BASE, studio_client

HTML = {"accept": "text/html"}
SECRET = "correct horse battery staple"


def run_studio(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lensmith", "studio", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


# The login.


@pytest.mark.parametrize("path", ["", "data", "runs", "runs/x", "train", "chat", "serve", "evaluate", "no/such/page"])
def test_without_a_session_there_is_only_the_login(tmp_path: Path, path: str) -> None:
    client = studio_client(tmp_path)
    answer = client.get(f"/{path}", headers=HTML, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"].removeprefix("./").replace("../", "").startswith("login")
    assert client.get(f"/{path}", headers={"accept": "*/*"}).status_code == 401


def test_the_printed_link_works_once(tmp_path: Path) -> None:
    announced: list[str] = []
    access = TokenAccess(announced.append)
    token = access.token
    client = studio_client(tmp_path, access)
    assert client.get(f"/login?token={token}", headers=HTML).status_code == 200
    assert client.get("/", headers=HTML).status_code == 200
    other = TestClient(client.app, base_url=BASE)
    assert other.get(f"/login?token={token}", headers=HTML).status_code == 401
    assert other.get("/", headers=HTML, follow_redirects=False).status_code == 303
    assert announced == [access.token]
    assert announced != [token]
    assert other.get(f"/login?token={access.token}", headers=HTML).status_code == 200


def test_the_session_cookie_is_not_for_scripts_nor_for_other_sites(tmp_path: Path) -> None:
    access = TokenAccess()
    answer = studio_client(tmp_path, access).get(f"/login?token={access.token}", follow_redirects=False)
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=Lax" in answer.headers["set-cookie"]
    assert access.token not in answer.headers["location"]


def test_a_session_outlives_a_restart_and_ends_with_the_logout(client: TestClient, tmp_path: Path) -> None:
    again = TestClient(make_app(tmp_path / "workspace", TokenAccess()), base_url=BASE, cookies=client.cookies)
    assert again.get("/runs", headers=HTML).status_code == 200
    client.post("/logout")
    assert client.get("/runs", headers={"accept": "*/*"}).status_code == 401


@pytest.mark.parametrize("cookie", ["", "x", "link.1.2", "link.99999999999.abc.", "a.b.c.d", "link.1.n." + "0" * 64])
def test_a_made_up_session_is_none(tmp_path: Path, cookie: str) -> None:
    client = studio_client(tmp_path)
    headers = {"accept": "*/*", "cookie": f"lensmith_studio={cookie}"}
    assert client.get("/runs", headers=headers).status_code == 401


def test_a_session_of_another_workspace_or_of_long_ago_is_none() -> None:
    now = 1000.0
    sessions = Sessions(b"one", lambda: now)
    session = sessions.issue("link")
    assert sessions.holder(session) == "link"
    assert Sessions(b"two", lambda: now).holder(session) is None
    now += MAX_AGE
    assert sessions.holder(session) is None


def password_access(folder: Path, password: str = SECRET) -> PasswordAccess:
    (folder / "password").write_text(password + "\n")
    return PasswordAccess(folder / "password")


def test_the_password_lets_in_and_a_new_one_ends_old_sessions(tmp_path: Path) -> None:
    client = studio_client(tmp_path / "w", password_access(tmp_path))
    wrong = client.post("/login", data={"secret": "wrong", "next": ""}, headers=HTML)
    assert wrong.status_code == 401
    assert "The password is not right." in wrong.text
    right = client.post("/login", data={"secret": SECRET, "next": "runs"}, headers=HTML, follow_redirects=False)
    assert (right.status_code, right.headers["location"]) == (303, "./runs")
    assert client.get("/runs").status_code == 200
    changed = TestClient(
        make_app(tmp_path / "w", password_access(tmp_path, "another long one")), base_url=BASE, cookies=client.cookies
    )
    assert changed.get("/runs", headers={"accept": "*/*"}).status_code == 401


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/\\evil.example", "../../x", "javascript:x"]
)
def test_the_login_leads_nowhere_else(tmp_path: Path, target: str) -> None:
    client = studio_client(tmp_path / "w", password_access(tmp_path))
    answer = client.post("/login", data={"secret": SECRET, "next": target}, headers=HTML, follow_redirects=False)
    assert answer.status_code == 400


def test_guessing_is_slowed_for_everybody(tmp_path: Path) -> None:
    client = studio_client(tmp_path / "w", password_access(tmp_path))
    client.app.state.studio.attempts = Attempts(lambda: 0.0)
    for _ in range(FAILURES):
        client.app.state.studio.attempts.failed()
    answer = client.post("/login", data={"secret": SECRET}, headers=HTML)
    assert answer.status_code == 429
    assert "Try again in" in answer.text


def test_after_the_wait_a_login_is_possible_again() -> None:
    now = 0.0
    attempts = Attempts(lambda: now)
    for _ in range(FAILURES):
        attempts.failed()
    now = SECONDS + 1
    attempts.check()


def test_keys_are_the_gateway_s_and_a_revoked_one_ends_its_session(tmp_path: Path) -> None:
    from gateway.tenants.keys import KeyRing

    now = 0.0
    secret, file = new_secret(), tmp_path / "keys.json"
    write_keys(file, [Key("me", digest(secret), "")])
    client = studio_client(tmp_path / "w", KeyAccess(KeyRing(file, clock=lambda: now)))
    assert client.post("/login", data={"secret": "sk-lensmith-no"}, headers=HTML).status_code == 401
    assert client.post("/login", data={"secret": secret}, headers=HTML).status_code == 200
    assert client.get("/runs", headers={"accept": "*/*"}).status_code == 200
    write_keys(file, [])
    now = 5.0
    assert client.get("/runs", headers={"accept": "*/*"}).status_code == 401


# Where it listens.


def test_it_listens_on_this_machine_only_unless_told_how_to_keep_others_out(tmp_path: Path) -> None:
    refused = run_studio("--folder", str(tmp_path), "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2
    assert "give --password-file FILE, --keys FILE, or --no-password" in refused.stderr.replace("\n", " ")


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        refused = run_studio("--folder", str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert refused.returncode == 1
    assert "Address already in use" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("short\n", "at least 8 characters")])
def test_a_password_file_that_is_none_is_told(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_text(content)
    refused = run_studio("--folder", str(tmp_path / "w"), "--port", "0", "--password-file", str(file))
    assert refused.returncode == 1
    assert message in refused.stderr


def test_a_workspace_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run_studio("--folder", str(tmp_path / "file" / "w"), "--port", "0")
    assert refused.returncode == 1
    assert "Not a directory" in refused.stderr
    assert "Traceback" not in refused.stderr


# Other sites' pages.


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "[::1].evil.example", ""]
)
def test_a_name_that_was_made_to_lead_here_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={**HTML, "host": host}).status_code == 421


@pytest.mark.parametrize(
    "host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "10.1.2.3:80", "studio.localhost", socket.gethostname()]
)
def test_the_machine_s_own_names_and_addresses_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/login", headers={**HTML, "host": host}).status_code == 200


def test_a_name_that_was_allowed_is_answered(tmp_path: Path) -> None:
    client = TestClient(make_app(tmp_path, OpenAccess(), ["gpu.example"]), base_url=BASE)
    assert client.get("/", headers={**HTML, "host": "GPU.example:443"}).status_code == 200


def test_a_change_needs_the_page_s_token(client: TestClient, studio: Studio) -> None:
    studio.workspace.create("runs", "one")
    token = client.headers.pop("x-csrf-token")
    url = "/runs/one/notes"
    assert client.put(url, data={"notes": "x"}).status_code == 403
    assert client.put(url, data={"notes": "x"}, headers={"x-csrf-token": "0" * 64}).status_code == 403
    assert client.put(url, data={"notes": "x"}, headers={"x-csrf-token": token}).status_code == 200
    assert client.put(url, data={"notes": "plain", "csrf": token}).status_code == 200
    assert (studio.workspace.path("runs", "one") / "notes.md").read_text() == "plain"
    cross = {"x-csrf-token": token, "sec-fetch-site": "same-site"}
    assert client.put(url, data={"notes": "x"}, headers=cross).status_code == 403


def test_a_token_of_another_session_is_refused(tmp_path: Path) -> None:
    access = TokenAccess()
    one = studio_client(tmp_path, access)
    tokens = []
    for client in (one, TestClient(one.app, base_url=BASE)):
        page = client.get(f"/login?token={access.token}", headers=HTML).text
        tokens.append(re.findall(r'csrf-token" content="(\w+)"', page)[0])
    assert tokens[0] != tokens[1]
    assert one.post("/logout", headers={"x-csrf-token": tokens[1]}).status_code == 403


def test_a_change_needs_the_token_also_where_everybody_gets_in(tmp_path: Path) -> None:
    client = studio_client(tmp_path, OpenAccess())
    assert client.get("/runs").status_code == 200
    assert client.post("/logout").status_code == 403


def test_another_site_cannot_log_somebody_in(tmp_path: Path) -> None:
    client = studio_client(tmp_path / "w", password_access(tmp_path))
    answer = client.post("/login", data={"secret": SECRET}, headers={**HTML, "sec-fetch-site": "cross-site"})
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["", "login", "static/studio.js", "no/such/page"])
def test_every_answer_forbids_inline_scripts_frames_and_other_origins(client: TestClient, path: str) -> None:
    headers = client.get(f"/{path}", headers=HTML).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_pages_hold_nothing_inline(client: TestClient) -> None:
    for path in ("", "data", "train", "runs", "evaluate", "chat", "serve", "login"):
        page = client.get(f"/{path}", headers=HTML).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page), path


# Paths.


@pytest.mark.parametrize(
    "path",
    [
        "static/../app.py",
        "static/%2e%2e/%2e%2e/app.py",
        "static//etc/passwd",
        "static/..%2f..%2f.secret",
        "runs/..%2f.secret",
    ],
)
def test_no_file_outside_is_given(client: TestClient, path: str) -> None:
    answer = client.get(f"/{path}", headers=HTML)
    assert answer.status_code in (400, 404)
    assert "root:" not in answer.text


def test_what_is_said_of_a_hostile_name_is_text(client: TestClient) -> None:
    answer = client.get("/runs/%3Cscript%3Ealert(1)%3C%2Fscript%3E", headers=HTML)
    assert "<script>alert" not in answer.text


def test_a_defect_says_nothing_of_the_inside(client: TestClient, studio: Studio) -> None:
    studio.workspace = None  # type: ignore[assignment]
    answer = client.get("/runs", headers=HTML)
    assert answer.status_code == 500
    assert "NoneType" not in answer.text
    assert answer.headers["content-security-policy"]
