"""Preference data: a question with a better and a worse answer, as LLaMA-Factory, TRL and OpenAI write it."""
