"""The prompts we predict are those a real Ollama made, and those the chat template makes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelfiles.folder.chat_template import ChatTemplateError, render_chat_template, to_hugging_face
from modelfiles.language import gotemplate
from modelfiles.language.gotemplate import GoTemplateError
from modelfiles.ollama.architectures import ARCHITECTURES, find_architecture
from modelfiles.ollama.prompts import Conversation, render_renderer, render_template
from tests.support.paths import GOLDENS

RECORDED = json.loads((GOLDENS / "prompts_qwen3vl.json").read_text())
ROWS: list[dict[str, Any]] = RECORDED["rows"]


def rows(test: Any) -> Any:
    return pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])(test)


def conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(row["case"], row["messages"], row["tools"])


@rows
@pytest.mark.parametrize("name", ["exact", "lf", "seed"])
def test_a_go_template_renders_as_in_ollama(row: dict[str, Any], name: str) -> None:
    nodes = gotemplate.parse_template(RECORDED["templates"][name])
    assert render_template(nodes, conversation(row)) == row[f"go_template_{name}"]


@rows
@pytest.mark.parametrize("name", ["qwen3-vl-instruct", "qwen3-vl-thinking"])
def test_a_renderer_renders_as_in_ollama(row: dict[str, Any], name: str) -> None:
    assert render_renderer(name, conversation(row)) == row[f"renderer_{name.replace('-', '_')}"]


@rows
def test_the_chat_template_renders_as_in_transformers(row: dict[str, Any]) -> None:
    template = (GOLDENS / "qwen3_vl.jinja").read_text()
    job = {"messages": to_hugging_face(row["messages"]), "tools": row["tools"], "add_generation_prompt": True}
    assert render_chat_template(template, [job], {}) == [row["hf_chat_template"]]


def test_our_chatml_template_is_the_recorded_one() -> None:
    family = find_architecture("Qwen3VLForConditionalGeneration")
    assert family is not None
    assert (
        family.template_text() == RECORDED["templates"]["exact"] == (GOLDENS / "qwen_chatml_exact.gotmpl").read_text()
    )


@pytest.mark.parametrize("family", ARCHITECTURES, ids=lambda family: family.name)
def test_every_template_we_emit_offers_what_keeps_ollama_from_replacing_it(family: Any) -> None:
    nodes = gotemplate.parse_template(family.template_text())
    assert {"Messages", "System"} <= gotemplate.fields(nodes)
    if family.template == "chatml":
        assert {"Tools", "ToolCalls"} <= gotemplate.fields(nodes)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ .Prompt }}", "hi"),
        ("a {{- 1 -}}\n b", "a1b"),
        ("{{/* nothing */}}x", "x"),
        ("{{ if and .Prompt (not .Missing) }}y{{ else }}n{{ end }}", "y"),
        ("{{ with .Missing }}a{{ else with .Prompt }}{{ . }}{{ end }}", "hi"),
        ("{{ range $i, $x := .List }}{{ if eq $i 1 }}{{ continue }}{{ end }}{{ $i }}{{ $x }}{{ end }}", "0a2c"),
        ("{{ range .Missing }}a{{ else }}none{{ end }}", "none"),
        ("{{ $n := 0 }}{{ range .List }}{{ $n = len .  }}{{ end }}{{ $n }}", "1"),
        ('{{ (index .List 1) | printf "%s!" }}{{ json .Map }}{{ .Map.k }}', 'b!{"k":"\\u003c"}<'),
        ('{{ "\\"q\\"" }}{{ `raw\\n` }}', '"q"raw\\n'),
        ("{{ $.Prompt }}{{ range .List }}{{ $.Prompt }}{{ break }}{{ end }}", "hihi"),
    ],
)  # fmt: skip
def test_go_template_language(template: str, expected: str) -> None:
    data = {"Prompt": "hi", "List": ["a", "b", "c"], "Map": {"k": "<"}}
    assert gotemplate.execute(gotemplate.parse_template(template), data) == expected


@pytest.mark.parametrize(
    "template",
    ["{{ if }}{{ end }}", "{{ if .A }}", "{{ end }}", "{{ else }}", "{{ nofunc 1 }}", "{{ ( .A }}", "{{ .A",
     "{{ | .A }}", '{{ template "x" }}', "{{ $x }}", "{{ $x = 1 }}", "{{ len 1 }}", "{{ index .A 9 }}", "{{ break }}",
     "{{ .A.B.C }}", "{{ range 99999999999 }}{{ end }}", "{{ if .A }}" * 200, "{{ " + "(" * 300 + " }}"],
)  # fmt: skip
def test_a_broken_go_template_is_refused(template: str) -> None:
    with pytest.raises(GoTemplateError):
        gotemplate.execute(gotemplate.parse_template(template), {"A": "text"})


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 9999999999 }}",
        "{{ raise_exception('no') }}",
        "{% if %}",
    ],
    ids=["escape", "loop", "memory", "raise", "syntax"],
)
def test_a_hostile_chat_template_is_stopped(template: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        render_chat_template(template, [{"messages": [], "tools": None}], {})
    assert str(caught.value).startswith("the chat template ")


def test_a_template_may_refuse_some_conversations() -> None:
    template = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}{{ messages[0].content }}"
    asked = [{"role": "user", "content": "a"}]
    jobs = [{"messages": asked, "tools": None}, {"messages": asked, "tools": [{}]}]
    assert render_chat_template(template, jobs, {}) == ["a", None]


def test_legacy_templates_run_once_per_exchange() -> None:
    nodes = gotemplate.parse_template("{{ if .System }}[{{ .System }}]{{ end }}U:{{ .Prompt }} A:{{ .Response }};")
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert render_template(nodes, Conversation("legacy", messages)) == "[s]U:a A:b;U:c A:"
