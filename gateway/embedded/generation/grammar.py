"""Structured output: a grammar of llguidance says which tokens may come next, so that an answer cannot break its form.

The form is a JSON schema (`response_format`), tool calls in the way of the Qwen family (Hermes' `<tool_call>` blocks),
or a choice between them. What llguidance cannot honour it names, which is why it was chosen:
docs/decisions/2026-11-28-structured-output.md.
"""

from __future__ import annotations

import json
from typing import Any

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher

from gateway.embedded.protocol import GenerationRequest
from gateway.embedded.tools import CLOSE, OPEN, Tool
from gateway.errors import ApiError, bad_request

# JSON on one line, or indented. Where any white space is allowed, a model that is undecided writes it until its tokens
# are used up.
WHITE_SPACE = r" |\n[ \t]{0,24}"
FREE_TEXT = r"TEXT: /(.|\n)*/"
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class GrammarError(Exception):
    """A grammar allows no further token, or became too large while it was followed."""


class Constraint:
    """The state of one sequence in its grammar. Used by the generating thread only."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> Constraint:
        return Constraint(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> torch.Tensor:
        """[vocabulary], True for tokens that may come next; at least one is. Raises GrammarError."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        if self._matcher.is_error() or not allowed.any():
            raise self._error()
        return torch.from_numpy(allowed)

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [vocabulary] with -inf for tokens that may not come next. Raises GrammarError."""
        return torch.where(self.allowed(), logits, float("-inf"))

    def consume(self, token: int) -> None:
        """Moves on by a token that `mask` allowed. Raises GrammarError."""
        if not self._matcher.consume_token(token):
            raise self._error()

    def _error(self) -> GrammarError:
        lines = self._matcher.get_error().splitlines()  # the lines after the first hold the whole grammar
        return GrammarError(lines[0][:200] if lines else "no token may come next")


class GrammarCompiler:
    """Makes constraints for one tokenizer. vocab_size: the model's, which may be larger than the tokenizer's."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=sorted(eos_ids))
        self._vocab_size = vocab_size
        # In llguidance's grammars a name in angle brackets is the token, a string is text made of other tokens.
        tags_are_tokens = {OPEN, CLOSE} <= set(tokenizer.get_added_vocab())
        self._open, self._close = (OPEN, CLOSE) if tags_are_tokens else (json.dumps(OPEN), json.dumps(CLOSE))
        self._tags_are_tokens = tags_are_tokens

    def compile(self, request: GenerationRequest) -> Constraint | None:
        """The request's constraint; None if its answer may be any text. Raises ApiError 400 naming the schema."""
        if request.schema is not None:
            self._check_schema(request.schema, "response_format")
        if request.tools:
            grammar = self._with_tools(request)
        elif request.schema is not None:
            grammar = f"start: {json_rule(request.schema)}"
        else:
            return None
        constraint = Constraint(LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar)), self._vocab_size)
        try:
            constraint.allowed()
        except GrammarError as error:  # such as a schema that refers to itself without end, or one that is too large
            param = "response_format" if request.schema is not None else "tools"
            message = f"'{param}' has a JSON schema that no answer can keep to: {error}."
            raise bad_request(message, param, "invalid_schema") from None
        return constraint

    def _with_tools(self, request: GenerationRequest) -> str:
        """A grammar for text or JSON, tool calls, or either of them."""
        callable_tools = {
            f"tool_{index}": self._tool_json(index, tool)
            for index, tool in enumerate(request.tools)
            if request.only_tool in (None, tool.name)
        }
        rules = [f"{rule}: {form}" for rule, form in callable_tools.items()]
        names = " | ".join(callable_tools)
        more = '("\\n" call)*' if request.parallel_tool_calls else ""
        rules += [f"call: {self._open} body", f'body: "\\n" ({names}) "\\n" {self._close}', f"calls: call {more}"]
        if request.must_call:
            return "\n".join(["start: calls", *rules])
        if request.schema is not None:
            return "\n".join(["start: answer | calls", f"answer: {json_rule(request.schema)}", *rules])
        if self._tags_are_tokens:
            return "\n".join(["start: TEXT calls?", FREE_TEXT, *rules])
        # The first tag, which is text like the text before it, must be recognised as soon as it is complete.
        return "\n".join(
            ["start: TEXT | first", f"first: before body {more}", f"before[lazy]: TEXT {self._open}", FREE_TEXT, *rules]
        )

    def _tool_json(self, index: int, tool: Tool) -> str:
        schema = tool.parameters
        try:
            self._check_schema(schema, f"tools[{index}].function.parameters")
        except ApiError:
            if tool.strict:
                raise
            schema = ANY_OBJECT  # not strict: the schema is for the model to read, and the client checks what comes
        opening = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        return f'{opening} {json_rule(schema)} "}}"'

    def _check_schema(self, schema: dict[str, Any], param: str) -> None:
        """Raises ApiError 400 that names `param` if llguidance cannot honour the schema."""
        problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(with_options(schema)), self._tokenizer)
        if problem:
            reason = " ".join(problem.split())[:200]
            raise bad_request(
                f"'{param}' has a JSON schema that cannot be honoured: {reason}.", param, "invalid_schema"
            )


def with_options(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with our options for llguidance, which also replace options that a client has put there."""
    return {**schema, "x-guidance": {"whitespace_pattern": WHITE_SPACE}}


def json_rule(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(with_options(schema))}"
