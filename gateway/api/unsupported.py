"""Request fields that no engine honours, and the values at which a field asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping

# Values that ask for nothing, so that a client which always sends them is not refused.
HARMLESS: Mapping[str, tuple[object, ...]] = {
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "tools": ([],),
    "logit_bias": ({},),
    "store": (False,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "n": (1,),
    "logprobs": (0,),
}

# Documented fields of OpenAI's chat completions that no engine behind this gateway can honour.
NOWHERE: Mapping[str, str] = {
    "audio": "audio output is not supported",
    "modalities": "only text output is supported",
    "prediction": "predicted outputs are not supported",
    "functions": "it is deprecated; use 'tools'",
    "function_call": "it is deprecated; use 'tool_choice'",
    "store": "completions are not stored",
    "service_tier": "there is only one service tier",
    "web_search_options": "web search is not supported",
    "verbosity": "no engine has it",
    "moderation": "nothing is moderated",
}

# And of /v1/completions.
NOWHERE_IN_TEXT: Mapping[str, str] = {
    "echo": "put the prompt before the answer yourself",
    "suffix": "there is no model for filling in the middle",
    "best_of": "use 'n'",
}
