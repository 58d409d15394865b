#!/usr/bin/env bash
# Expected: {"type": "string", "maxLength": 200} allows the same strings as {"type": "string"}, up to 200 characters
# long.
#
# What happens in xgrammar: a length limit (maxLength or minLength, however large) also forbids every escape. The
# string can then hold no quotation mark, no newline, no tab and no backslash, as JSON writes all of these with an
# escape. In return it lets a raw tab through, which no JSON parser takes. Nothing is said. llguidance takes the
# same schema and is right in all of it.
#
# Versions: xgrammar 0.2.8, llguidance 1.9.1, torch 2.13.0 (xgrammar's import needs it).
#
# Why it matters: transcribing a picture into JSON is what vision-language models are used for, and pydantic's
# Field(max_length=...) the usual guard against endless answers. With it, a model that wants to write a second line
# or a quoted word is steered to something else at that character: lines run together, or the string ends early and
# looks complete. xgrammar is the default engine for structured output of several servers, LMDeploy among them.
#
# Source: printing xgrammar.Grammar.from_json_schema for both schemas: without a length the grammar has a rule for
# escapes, with one the string is a repetition of any characters but quotation mark, backslash, CR and LF.
#
# Output seen (does the grammar take the text?):
#   schema                                text                 xgrammar  llguidance
#   {"type": "string"}                    "Total\n12.50"       yes       yes
#   {"type": "string"}                    "19\" screen"        yes       yes
#   {"type": "string", "maxLength": 200}  "Total 12.50"        yes       yes
#   {"type": "string", "maxLength": 200}  "Total\n12.50"       no        yes
#   {"type": "string", "maxLength": 200}  "19\" screen"        no        yes
#   {"type": "string", "maxLength": 200}  "C:\\scan"           no        yes
#   {"type": "string", "minLength": 1}    "Total\n12.50"       no        yes
#   a raw tab with maxLength 200: xgrammar takes it, llguidance does not, json.loads: Invalid control character at
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
info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])
compiler = xgrammar.GrammarCompiler(info)


def xgrammar_takes(schema, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(schema))
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256)


def llguidance_takes(schema, text):
    matcher = LLMatcher(bytes_tokenizer, LLMatcher.grammar_from_json_schema(schema))
    tokens = bytes_tokenizer.tokenize_bytes(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


free, limited, filled = ({"type": "string", **more} for more in ({}, {"maxLength": 200}, {"minLength": 1}))
cases = [
    (free, "Total\n12.50", True),
    (free, '19" screen', True),
    (limited, "Total 12.50", True),
    (limited, "Total\n12.50", False),
    (limited, '19" screen', False),
    (limited, "C:\\scan", False),
    (filled, "Total\n12.50", False),
]
print(f"{'schema':<37} {'text':<20} xgrammar  llguidance")
for schema, text, expected in cases:
    written, answer = json.dumps(schema), json.dumps(text)
    one, other = xgrammar_takes(written, answer), llguidance_takes(written, answer)
    if (one, other) != (expected, True):
        sys.exit(f"The behaviour has changed: for {written} and {answer} xgrammar says {one}, llguidance {other}.")
    print(f"{written:<37} {answer:<20} {'yes' if one else 'no':<9} {'yes' if other else 'no'}")
raw, written = '"1\t2"', json.dumps(limited)
try:
    json.loads(raw)
    sys.exit("The behaviour has changed: json.loads takes a raw tab.")
except json.JSONDecodeError as error:
    complaint = error.msg
if not xgrammar_takes(written, raw) or llguidance_takes(written, raw):
    sys.exit("The behaviour has changed: a raw tab in a string with a length is no longer taken by xgrammar alone.")
print(f"a raw tab with maxLength 200: xgrammar takes it, llguidance does not, json.loads: {complaint}")
PY
