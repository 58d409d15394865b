#!/usr/bin/env bash
# Expected: an engine for structured output enforces a JSON schema or refuses it with the name of the keyword that
# it cannot enforce.
#
# What happens in xgrammar: a schema that it understands in part is compiled, and the rest is dropped. Some of it
# leaves a line in the C++ log of the server, most of it not a word:
# - allOf of two objects allows ANY JSON value, a bare string included, not just looser objects;
# - a required key that is not listed under properties may be missing, and so may each key that anyOf requires
#   beside properties;
# - keywords beside a $ref (minimum and the like) are dropped, and minimum or maximum without "type" do nothing;
# - if/then, not and uniqueItems do nothing;
# - "pattern" is matched against the whole string, where JSON Schema searches: "[0-9]{2}" forces a string of exactly
#   two digits. llguidance enforces or refuses each of them.
#
# Versions: xgrammar 0.2.8, llguidance 1.9.1, torch 2.13.0 (xgrammar's import needs it).
#
# Why it matters: a client that asks for a schema and gets HTTP 200 takes the answer as checked, and parses without
# looking. allOf is what generators write for inheritance, a $ref with a bound beside it is what pydantic writes for
# a constrained named type. The last point does harm in the other direction: the model is forced to a wrong, shorter
# string that fits.
#
# Source: xgrammar 0.2.8, cpp/json_schema_converter.cc ("Support for allOf with multiple options is still ongoing"
# in the log); JSON Schema 2020-12, validation 6.3.3 (regular expressions are not anchored) and core 8.2.3.1 ($ref
# has siblings).
#
# Output seen (the answer breaks the schema, but for the last line, where it keeps it):
#   allOf of two objects             "anything"      xgrammar takes it    llguidance does not
#   required key not in properties   {"a": 1}        xgrammar takes it    llguidance does not
#   anyOf beside properties          {}              xgrammar takes it    llguidance does not
#   minimum beside $ref              3               xgrammar takes it    llguidance does not
#   minimum without type             3               xgrammar takes it    llguidance does not
#   if and then                      {"a": 1}        xgrammar takes it    llguidance refuses the schema
#   not                              "draft"         xgrammar takes it    llguidance refuses the schema
#   uniqueItems                      [1, 1]          xgrammar takes it    llguidance refuses the schema
#   pattern [0-9]{2}                 "room 12"       xgrammar does not    llguidance takes it
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 transformers==5.24.0 apache-tvm-ffi==0.1.15.post2 pydantic==2.14.4
"$work/venv/bin/pip" install -qq --no-deps xgrammar==0.2.8 llguidance==1.9.1
cd "$work"
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PY'
import json
import sys

import xgrammar
from llguidance import LLMatcher, LLTokenizer

bytes_tokenizer = LLTokenizer("byte")
vocabulary = [bytes([number]) for number in range(256)] + [b"</s>"]
compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256]))
TAKES, NOT, REFUSES = "takes it", "does not", "refuses the schema"


def by_xgrammar(schema, text):
    try:
        matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(schema))
    except RuntimeError:
        return REFUSES
    return TAKES if all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256) else NOT


def by_llguidance(schema, text):
    grammar = LLMatcher.grammar_from_json_schema(schema)
    if LLMatcher.validate_grammar(grammar, bytes_tokenizer):
        return REFUSES
    matcher, tokens = LLMatcher(bytes_tokenizer, grammar), bytes_tokenizer.tokenize_bytes(text.encode())
    return TAKES if matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting() else NOT


def thing(*keys, **more):
    return {"type": "object", "properties": {key: {"type": "integer"} for key in keys}, **more}


either = [{"required": ["a"]}, {"required": ["b"]}]
bounded = {"$defs": {"Score": {"type": "integer"}}, "$ref": "#/$defs/Score", "minimum": 5}
one = {"properties": {"a": {"const": 1}}}
whole = [thing("a", required=["a"]), thing("b", required=["b"])]
cases = [
    ("allOf of two objects", {"allOf": whole}, "anything", TAKES, NOT),
    ("required key not in properties", thing("a", required=["a", "b"]), {"a": 1}, TAKES, NOT),
    ("anyOf beside properties", thing("a", "b", anyOf=either), {}, TAKES, NOT),
    ("minimum beside $ref", bounded, 3, TAKES, NOT),
    ("minimum without type", {"minimum": 5}, 3, TAKES, NOT),
    ("if and then", thing("a", **{"if": one, "then": {"required": ["b"]}}), {"a": 1}, TAKES, REFUSES),
    ("not", {"type": "string", "not": {"const": "draft"}}, "draft", TAKES, REFUSES),
    ("uniqueItems", {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 1], TAKES, REFUSES),
    ("pattern [0-9]{2}", {"type": "string", "pattern": "[0-9]{2}"}, "room 12", NOT, TAKES),
]
for name, schema, value, expected, other_expected in cases:
    written, answer = json.dumps(schema), json.dumps(value)
    first, second = by_xgrammar(written, answer), by_llguidance(written, answer)
    if (first, second) != (expected, other_expected):
        sys.exit(f"The behaviour has changed: with {name} and {answer} xgrammar {first}, llguidance {second}.")
    print(f"{name:<32} {answer:<15} xgrammar {first:<11} llguidance {second}")
PY
