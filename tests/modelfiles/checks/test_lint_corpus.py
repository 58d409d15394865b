"""A corpus of what people write in Modelfiles: what Ollama takes gets no error, and what it refuses does.

What Ollama does is from its parser and template package, and for templates from Go's text/template.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from modelfiles.cli.group import modelfile
from modelfiles.language import gotemplate
from modelfiles.language.gotemplate import GoTemplateError
from tests.support.modelfiles.model_folders import make_folder

DATA = {"Prompt": "hi", "List": ["a", "b"], "Map": {"k": "<"}, "Messages": [{"Role": "user", "Content": "c"}]}

# Template -> what Go prints for DATA.
ACCEPTED = {
    # Functions: Go's own, and Ollama's.
    "{{ html .Map.k }}": "&lt;",
    '{{ js "it\'s" }}': "it\\'s",
    '{{ urlquery "a b&c" }}': "a+b%26c",
    '{{ println "a" 1 }}': "a 1\n",
    '{{ print 1 2 "x" 3 }}': "1 2x3",
    '{{ printf "%d-%v-%s" 1 true "x" }}': "1-true-x",
    "{{ len .List }}{{ index .List 1 }}{{ slice .Prompt 1 }}": "2bi",
    "{{ json .Map }}": '{"k":"\\u003c"}',
    "{{ toTypeScriptType .Prompt }}": "any",
    "{{ if false }}{{ call .Prompt }}{{ end }}": "",
    "{{ if currentDate }}d{{ end }}{{ if yesterdayDate }}y{{ end }}": "dy",
    # define, template, block.
    '{{ define "t" }}[{{ . }}]{{ end }}{{ template "t" .Prompt }}': "[hi]",
    '{{ template "t" }}{{ define "t" }}x{{ end }}': "x",
    '{{ block "b" .Prompt }}<{{ . }}>{{ end }}': "<hi>",
    '{{ define "t" }}{{ $ }}{{ end }}{{ range .List }}{{ template "t" . }}{{ end }}': "ab",
    # Literals.
    "{{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 017 }} {{ 1_000 }}": "31 5 15 15 1000",
    "{{ 1e3 }} {{ 1e6 }} {{ .5 }} {{ -2 }} {{ +3 }} {{ 1i }}": "1000 1e+06 0.5 -2 3 (0+1i)",
    "{{ 'a' }} {{ '\\n' }} {{ '\\'' }}": "97 10 39",
    '{{ "\\x41\\u00e9\\101\\t" }}': "AéA\t",
    "{{ `a\\n` }}": "a\\n",
    '{{ "}}" }}': "}}",
    "{{ true }} {{ eq nil nil }}": "true true",
    # Blanks, comments and trimming.
    "{{- /* why */ -}} a {{- `b` -}}  c": "abc",
    "{{/* }} */}}x": "x",
    "{{\n.Prompt\n}}": "hi",
    "{{.Prompt}}": "hi",
    "a{{- 3 -}} b": "a3b",
    # Control.
    "{{ range $i, $e := .List }}{{ if eq $i 1 }}{{ break }}{{ end }}{{ $e }}{{ end }}": "a",
    "{{ range .List }}{{ if eq . `a` }}{{ continue }}{{ end }}{{ . }}{{ end }}": "b",
    "{{ if .No }}1{{ else if .Prompt }}2{{ else }}3{{ end }}": "2",
    "{{ with .No }}1{{ else with .Prompt }}{{ . }}{{ end }}": "hi",
    "{{ $x := 1 }}{{ if .Prompt }}{{ $x = 2 }}{{ end }}{{ $x }}": "2",
    "{{ with $x := .Prompt }}{{ $x }}{{ end }}": "hi",
    "{{ range 3 }}{{ . }}{{ end }}": "012",
    "{{ range $m := .Messages }}{{ $m.Role }}:{{ .Content }}{{ end }}": "user:c",
    "{{ (index .Messages 0).Content }}": "c",
    "{{ .Prompt | printf `%s-%s` `a` | len }}": "4",
    "{{ .Missing }}": "<no value>",
    "{{ if and .Prompt (or .No (not .No)) }}y{{ end }}": "y",
}
# Template -> a part of the reason.
REFUSED = {
    "{{ $x }}": 'undefined variable "$x"',
    "{{ if .A }}{{ $x := 1 }}{{ end }}{{ $x }}": 'undefined variable "$x"',
    '{{ $x := 1 }}{{ define "t" }}{{ $x }}{{ end }}': 'undefined variable "$x"',
    "{{ break }}": "outside {{range}}",
    "{{ if .A }}{{ continue }}{{ end }}": "outside {{range}}",
    "{{ range .A }}{{ else }}{{ break }}{{ end }}": "outside {{range}}",
    "{{ range .A }}{{ break 1 }}{{ end }}": "in {{break}}",
    "{{ }}": "missing value for command",
    "{{}}": "missing value for command",
    "{{ .A. }}": "unexpected '.'",
    "{{ .A | 1 }}": "non executable command in pipeline stage 2",
    '{{ .A | "x" }}': "non executable command in pipeline stage 2",
    "{{ .A | . }}": "non executable command in pipeline stage 2",
    "{{ 08 }}": "bad number syntax",
    "{{ 1x }}": "bad number syntax",
    "{{ 99999999999999999999 }}": "bad number syntax",
    "{{ 1__0 }}": "bad number syntax",
    "{{ if .A }}{{ else x }}{{ end }}": "in else",
    "{{ if .A }}{{ end x }}": "in end",
    "{{ if .A }}{{ else }}{{ else }}{{ end }}": "expected end",
    "{{ if .A }}{{ else with .B }}{{ end }}": "unexpected 'with'",
    "{{ range .A }}{{ else if .B }}{{ end }}": "unexpected 'if'",
    "{{ if }}{{ end }}": "missing value for if",
    "{{ if .A }}": "has no {{end}}",
    "{{ end }}": "unexpected {{end}}",
    "{{ nosuch .A }}": 'function "nosuch" not defined',
    "{{ ( .A }}": "in parenthesized pipeline",
    "{{ .A ) }}": "unexpected ')'",
    "{{ () }}": "missing value for parenthesized pipeline",
    "{{ 1.5.A }}": "unexpected . before 'A'",
    "{{ true.A }}": "unexpected . before 'A'",
    "{{ .A.5 }}": "unexpected '.5'",
    '{{ "a }}': "unterminated quoted string",
    "{{ `a }}": "unterminated raw quoted string",
    "{{ 'ab' }}": "malformed character constant",
    '{{ "\\q" }}': "invalid escape",
    "{{ .A": "unclosed action",
    "{{/* a }}": "unclosed comment",
    "{{/* a */ .B }}": "comment ends before closing delimiter",
    "{{ .A?.B }}": "bad character",
    "{{ .A ? .B }}": "unexpected '?'",
    "{{ .A && .B }}": "unexpected '&'",
    '{{ if .A == "b" }}{{ end }}': "unexpected '='",
    "{{ $a, $b := .A }}": "too many declarations",
    "{{ range $a, .B }}{{ end }}": "range can only initialize variables",
    "{{ if .A }}{{ define `t` }}{{ end }}{{ end }}": "unexpected 'define'",
    "{{ template .A }}": "in template clause",
    "{{ .A := 1 }}": "unexpected ':='",
}
# Lines -> whether Ollama takes them; each stands below FROM.
LINES = {
    "RENDERER olmo3-32b-think": True,
    "RENDERER deepseek3.1": True,
    "PARSER deepseek3": True,
    "PARSER gemma4-no-thinking": True,
    "PARSER harmony": True,
    "RENDERER gemma4-small": True,
    "RENDERER deepseek3": False,
    "RENDERER harmony": False,
    "PARSER deepseek3.1": False,
    "PARSER olmo3-32b-think": False,
    "PARSER gemma4-small": False,
    "DRAFT ./missing.gguf": False,
    "DRAFT missing": False,
    "ADAPTER ./missing.gguf": False,
    "PARAMETER num_ctx 2048": True,
    "PARAMETER num_ctx 1e3": False,
    "PARAMETER temperature 1e-1": True,
    'PARAMETER stop "<|eot_id|>"': True,
    "PARAMETER stop <end_of_turn>": True,
}


def errors(text: str, folder: Path) -> list[str]:
    (folder / "Modelfile").write_text(text)
    result = CliRunner().invoke(modelfile, ["lint", str(folder / "Modelfile"), "--json"])
    return [found["rule"] for found in json.loads(result.output)["findings"] if found["severity"] == "error"]


@pytest.mark.parametrize("template", ACCEPTED)
def test_what_go_accepts_runs_as_in_go(template: str, tmp_path: Path) -> None:
    assert gotemplate.execute(gotemplate.parse_template(template), DATA) == ACCEPTED[template]
    assert errors(f'FROM llama3.2\nTEMPLATE """{template} """\n', tmp_path) == []


@pytest.mark.parametrize("template", REFUSED)
def test_what_go_refuses_is_refused_for_the_same_reason(template: str, tmp_path: Path) -> None:
    with pytest.raises(GoTemplateError) as caught:
        gotemplate.parse_template(template)
    assert REFUSED[template] in str(caught.value)
    assert errors(f'FROM llama3.2\nTEMPLATE """{template} """\n', tmp_path) == ["MF314"]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_ollama_takes_has_no_error(line: str, tmp_path: Path) -> None:
    assert (errors(f"FROM llama3.2\n{line}\n", tmp_path) == []) == LINES[line]


def test_a_template_that_nothing_defines_fails_at_every_request(tmp_path: Path) -> None:
    assert errors('FROM llama3.2\nTEMPLATE """{{ template "turn" . }} """\n', tmp_path) == ["MF315"]


@pytest.mark.parametrize("source", ["llama3.2", "hf.co/org/model:Q4_K_M", "."])
def test_rules_of_qwen_are_silent_on_other_models(source: str, tmp_path: Path) -> None:
    """num_ctx and stops are held against a model that is known to be one; a name says nothing."""
    folder = make_folder(tmp_path / "model", architectures=["LlamaForCausalLM"], vision_config=None)
    text = f"FROM {source}\nPARAMETER num_ctx 2048\nPARAMETER repeat_penalty 1\nPARAMETER stop <|im_end|>\n"
    (folder / "Modelfile").write_text(text)
    output = CliRunner().invoke(modelfile, ["lint", str(folder / "Modelfile")]).output
    assert "MF404" not in output
    assert ("MF406" in output) == (source == "."), "a folder names the tokens that end its answers"
