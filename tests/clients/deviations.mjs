// What each JavaScript client makes of each deviation of an engine behind the gateway: node deviations.mjs GATEWAY_URL
// Prints {client: {model: {text, tokens} or {error}}}. Every model of the gateway is a deviation.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";

globalThis.AI_SDK_LOG_WARNINGS = false; // it logs to stdout
const url = process.argv[2];
const baseURL = `${url}/v1`;
const openai = new OpenAI({ baseURL, apiKey: "x", maxRetries: 0 });
const compatible = createOpenAICompatible({ name: "lensmith", baseURL, includeUsage: true });
const aiOpenai = createOpenAI({ baseURL, apiKey: "x" });
const ollama = new Ollama({ host: url });
const messages = [{ role: "user", content: "hi" }];

async function streamed(languageModel) {
  let failed = null;
  const stream = streamText({ model: languageModel, messages, maxRetries: 0, onError({ error }) { failed = error; } });
  let text = "";
  for await (const part of stream.textStream) text += part;
  if (failed) throw failed;
  return { text, finish: await stream.finishReason, tokens: (await stream.usage).totalTokens };
}

async function asked(languageModel) {
  const answer = await generateText({ model: languageModel, messages, maxRetries: 0 });
  return { text: answer.text, finish: answer.finishReason, tokens: answer.usage.totalTokens };
}

const clients = {
  async openaiWhole(model) {
    const answer = await openai.chat.completions.create({ model, messages });
    return { text: answer.choices[0].message.content, finish: answer.choices[0].finish_reason,
      tokens: answer.usage.total_tokens };
  },
  async openaiStream(model) {
    const stream = openai.chat.completions.stream({ model, messages, stream_options: { include_usage: true } });
    const final = await stream.finalChatCompletion();
    return { text: final.choices[0].message.content, finish: final.choices[0].finish_reason,
      tokens: final.usage.total_tokens };
  },
  async responsesStream(model) {
    const final = await openai.responses.stream({ model, input: "hi" }).finalResponse();
    if (final.status === "failed") throw new Error(final.error.message);
    return { text: final.output_text, finish: "stop", tokens: final.usage.total_tokens };
  },
  compatibleWhole: (model) => asked(compatible(model)),
  compatibleStream: (model) => streamed(compatible(model)),
  aiOpenaiWhole: (model) => asked(aiOpenai.chat(model)),
  aiOpenaiStream: (model) => streamed(aiOpenai.chat(model)),
  async ollamaWhole(model) {
    const answer = await ollama.chat({ model, messages });
    return { text: answer.message.content, finish: answer.done_reason,
      tokens: answer.prompt_eval_count + answer.eval_count };
  },
  async ollamaStream(model) {
    let text = "", last;
    for await (last of await ollama.chat({ model, messages, stream: true })) text += last.message.content;
    return { text, finish: last.done_reason, tokens: last.prompt_eval_count + last.eval_count };
  },
};

const models = (await (await fetch(`${baseURL}/models`)).json()).data.map((model) => model.id);
const results = {};
for (const [name, ask] of Object.entries(clients)) {
  const seen = await Promise.all(models.map(async (model) => {
    try {
      return [model, await ask(model)];
    } catch (error) {
      return [model, { error: `${error?.message ?? error} ${error?.responseBody ?? ""} ${JSON.stringify(error) ?? ""}` }];
    }
  }));
  results[name] = Object.fromEntries(seen);
}
console.log(JSON.stringify(results));
