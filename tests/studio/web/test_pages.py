"""Every page of the studio opens, in both languages, and finds its files below any prefix."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.web.i18n import LOCALES, texts, translate
from tests.support.paths import ROOT

PAGES = ("", "data", "train", "runs", "evaluate", "chat", "serve")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_opens_in_its_language(client: TestClient, path: str, language: str) -> None:
    page = client.get(f"/{path}", headers={"accept-language": language})
    assert page.status_code == 200
    assert texts(language)["layout.nav_runs"] in page.text


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_no_absolute_link_and_its_files_are_there(client: TestClient, path: str) -> None:
    page = client.get(f"/{path}").text
    links = re.findall(r'(?:href|src|action)="([^"]*)"', page)
    assert links
    assert not [link for link in links if link.startswith(("/", "http"))]
    for link in links:
        if link.startswith("static/"):
            assert client.get("/" + link).status_code == 200, link


def test_both_languages_have_the_same_texts_with_the_same_placeholders() -> None:
    english, chinese = texts("en"), texts("zh")
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert sorted(re.findall(r"\{(\w+)\}", text)) == sorted(re.findall(r"\{(\w+)\}", chinese[key])), key


def test_one_thing_is_not_called_by_the_word_for_many() -> None:
    said = translate("en", "home.counts", datasets=1, runs=0, models=2)
    assert said == "1 dataset, 0 runs, 2 models."


COUNTS = "boxes|cores|count|datasets|minutes|models|rows|runs|samples|steps|tokens|waiting"


def test_english_texts_count_with_the_word_for_one_too() -> None:
    """`{count} rows` would say "1 rows". Scripts fill in chat.times; what programs say is theirs."""
    for key, text in texts("en").items():
        found = re.findall(rf"\{{(?:{COUNTS})\}} (?:more )?[a-z]+s\b", text)
        assert not found or key in ("chat.times", "data.pictures") or key.startswith("program."), key


def test_every_text_that_templates_ask_for_is_there() -> None:
    asked = set()
    for template in (ROOT / "studio" / "web" / "templates").rglob("*.html"):
        asked |= set(re.findall(r"""\bt\(\s*["']([\w.]+)["']\s*[,)]""", template.read_text()))
    assert asked
    assert asked <= texts("en").keys()


def test_every_text_is_asked_for_somewhere() -> None:
    written = "".join(
        path.read_text()
        for path in (ROOT / "studio").rglob("*")
        if path.suffix in (".py", ".html", ".js") and path.is_file()
    )
    for file in (LOCALES / "en").glob("*.json"):
        for key in json.loads(file.read_text()):
            beginnings = [key[: place.end()] for place in re.finditer("_", key)]
            asked = [f"{file.stem}.{key}", *(f"{file.stem}.{part}" for part in beginnings)]
            assert any(f'{text}"' in written or f"{text}{{" in written for text in asked), f"{file.stem}.{key}"


def test_an_unknown_page_says_so_to_people_and_to_scripts(client: TestClient) -> None:
    page = client.get("/nothing/here", headers={"accept": "text/html"})
    assert page.status_code == 404
    assert "There is no such page." in page.text
    assert client.get("/nothing", headers={"accept": "*/*"}).json() == {"error": "There is no such page."}


def test_a_page_deep_down_names_the_way_up(client: TestClient) -> None:
    assert '<base href="../../">' in client.get("/no/such/page", headers={"accept": "text/html"}).text


def test_static_files_of_the_wheel_have_their_licences() -> None:
    vendor = ROOT / "studio" / "web" / "static" / "vendor"
    folders = [path for path in vendor.iterdir() if path.is_dir()]
    assert len(folders) == 3
    assert all(any(path.name.startswith("LICENSE") for path in Path(folder).iterdir()) for folder in folders)


def test_the_studio_s_process_imports_nothing_that_is_slow_or_large() -> None:
    pages = "for path in ('', *page.NAVIGATION): assert client.get('/' + path).status_code == 200, path"
    code = (
        "import sys, tempfile; from pathlib import Path; from starlette.testclient import TestClient\n"
        "from studio.app import make_app; from studio.security.access import OpenAccess\n"
        "import studio.web.render as page\n"
        "app = make_app(Path(tempfile.mkdtemp()), OpenAccess())\n"
        f"client = TestClient(app, base_url='http://127.0.0.1')\n{pages}\n"
        "print(*({'torch', 'transformers', 'pyarrow', 'matplotlib', 'datasets'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == ""
