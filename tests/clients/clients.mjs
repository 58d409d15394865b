// The JavaScript clients against a gateway in front of the tests' fake engine: node clients.mjs GATEWAY_URL
// Prints one JSON object: the name of each check and what the client made of the answers. The Python side compares.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";

globalThis.AI_SDK_LOG_WARNINGS = false; // it logs to stdout
const url = process.argv[2];
const baseURL = `${url}/v1`;
const model = "fake";
const PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
const DATA_URI = `data:image/png;base64,${PNG}`;
const ask = (content) => [{ role: "user", content }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

const openai = new OpenAI({ baseURL, apiKey: "x", maxRetries: 0 });
const compatible = createOpenAICompatible({ name: "lensmith", baseURL, includeUsage: true, supportsStructuredOutputs: true });
const aiOpenai = createOpenAI({ baseURL, apiKey: "x" });
const ollama = new Ollama({ host: url });

async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

async function failure(work) {
  try {
    await work();
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? error.statusCode ?? error.status_code ?? null,
      code: error.code ?? null, message: String(error.message) };
  }
  return null;
}

// What engines behind the gateway saw of an image, told by the fake engine's `echo`.
const sawImage = (text) => text.includes(PNG);

async function aiSdk(languageModel) {
  const whole = await generateText({ model: languageModel, prompt: "count 3", maxRetries: 0 });
  const streamed = streamText({ model: languageModel, prompt: "count 3", maxRetries: 0 });
  const pieces = await all(streamed.textStream);
  const image = await generateText({ model: languageModel, maxRetries: 0,
    messages: ask([{ type: "text", text: "echo" }, { type: "image", image: DATA_URI }]) });
  const tools = { weather: tool({ description: "?", inputSchema: jsonSchema(parameters) }) };
  const called = await generateText({ model: languageModel, prompt: "tools", tools, maxRetries: 0 });
  const calling = streamText({ model: languageModel, prompt: "tools", tools, maxRetries: 0 });
  await calling.consumeStream();
  const object = await generateText({ model: languageModel, prompt: "echo", maxRetries: 0,
    output: Output.object({ schema: jsonSchema({ type: "object", properties: { body: { type: "object" } } }) }) });
  const broken = streamText({ model: languageModel, prompt: "fault mid-reset", maxRetries: 0, onError() {} });
  const parts = await all(broken.fullStream);
  const refused = await failure(() => generateText({ model: languageModel, prompt: "fault status 429", maxRetries: 0 }));
  return {
    text: whole.text, finish: whole.finishReason, tokens: whole.usage.totalTokens,
    pieces, streamFinish: await streamed.finishReason, streamTokens: (await streamed.usage).totalTokens,
    image: sawImage(image.text),
    calls: called.toolCalls.map((call) => [call.toolName, call.input]),
    streamCalls: (await calling.toolCalls).map((call) => [call.toolName, call.input]),
    object: typeof object.output.body, brokenIsSeen: parts.some((part) => part.type === "error"), refused,
  };
}

const checks = {
  async openaiChat() {
    const { data, request_id } = await openai.chat.completions.create({ model, messages: ask("count 3") }).withResponse();
    const stream = openai.chat.completions.stream({ model, messages: ask("count 3"), stream_options: { include_usage: true } });
    const final = await stream.finalChatCompletion();
    const content = [{ type: "text", text: "echo" }, { type: "image_url", image_url: { url: DATA_URI } }];
    const image = await openai.chat.completions.create({ model, messages: ask(content) });
    const tools = [{ type: "function", function: { name: "weather", parameters } }];
    const calling = openai.chat.completions.stream({ model, messages: ask("tools"), tools });
    const called = await calling.finalChatCompletion();
    return {
      text: data.choices[0].message.content, requestId: Boolean(request_id),
      streamText: final.choices[0].message.content, streamFinish: final.choices[0].finish_reason,
      streamTokens: final.usage.total_tokens, image: sawImage(image.choices[0].message.content),
      call: called.choices[0].message.tool_calls[0].function.arguments,
      unknown: await failure(() => openai.chat.completions.create({ model: "other", messages: ask("hi") })),
      broken: await failure(async () => all(await openai.chat.completions.create(
        { model, messages: ask("fault mid-reset"), stream: true }))),
    };
  },
  async openaiResponses() {
    const whole = await openai.responses.create({ model, input: "count 3" });
    const events = await all(await openai.responses.create({ model, input: "count 3", stream: true }));
    const stream = openai.responses.stream({ model, input: "count 3" });
    const final = await stream.finalResponse();
    const content = [{ type: "input_text", text: "echo" }, { type: "input_image", image_url: DATA_URI, detail: "auto" }];
    const image = await openai.responses.create({ model, input: ask(content) });
    return {
      text: whole.output_text, tokens: whole.usage.total_tokens, last: events.at(-1).type,
      finalText: final.output_text, image: sawImage(image.output_text),
      broken: await failure(async () => all(await openai.responses.create(
        { model, input: "fault mid-reset", stream: true }))),
    };
  },
  async openaiOthers() {
    const text = await openai.completions.create({ model, prompt: "count 3" });
    const models = await all(openai.models.list());
    return { text: text.choices[0].text, models: models.map((found) => found.id),
      unknownPath: await failure(() => openai.embeddings.create({ model, input: "x" })) };
  },
  aiSdkCompatible: () => aiSdk(compatible(model)),
  aiSdkOpenaiChat: () => aiSdk(aiOpenai.chat(model)),
  aiSdkOpenaiResponses: () => aiSdk(aiOpenai.responses(model)),
  async ollama() {
    const whole = await ollama.chat({ model, messages: ask("count 3") });
    const parts = await all(await ollama.chat({ model, messages: ask("count 3"), stream: true }));
    const image = await ollama.generate({ model, prompt: "echo", images: [PNG] });
    const tools = [{ type: "function", function: { name: "weather", description: "?", parameters } }];
    const called = await ollama.chat({ model, messages: ask("tools"), tools });
    const { models } = await ollama.list();
    return {
      text: whole.message.content, reason: whole.done_reason, pieces: parts.map((part) => part.message.content),
      image: sawImage(image.response), call: called.message.tool_calls[0].function.arguments,
      models: models.map((found) => found.name), capabilities: (await ollama.show({ model })).capabilities,
      unknown: await failure(() => ollama.chat({ model: "other", messages: ask("hi") })),
      broken: await failure(async () => all(await ollama.chat({ model, messages: ask("fault mid-reset"), stream: true }))),
    };
  },
};

const results = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    results[name] = await check();
  } catch (error) {
    results[name] = { failed: String(error.stack ?? error) };
  }
}
console.log(JSON.stringify(results));
