// The unmodified openai package for JavaScript against a server: PORT MODEL. Prints one line of JSON.
import OpenAI from "openai";
const client = new OpenAI({ baseURL: `http://127.0.0.1:${process.argv[2]}/v1`, apiKey: "none-needed", maxRetries: 0 });
const ask = { model: process.argv[3], messages: [{ role: "user", content: "a" }], max_tokens: 8, seed: 1 };
const whole = await client.chat.completions.create(ask);
let text = "", usage = null;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
let refused = null;
try { await client.chat.completions.create({ ...ask, tools: [{ type: "function", function: { name: "f", parameters: {} } }] }); } catch (error) { refused = { status: error.status, param: error.param }; }
const names = (await client.models.list()).data.length;
const runner = client.chat.completions.stream({ ...ask, model: ask.model + "@best_of_n:num=2" });
const final = await runner.finalChatCompletion();
console.log(JSON.stringify({ same: text === whole.choices[0].message.content, total: usage.total_tokens === whole.usage.total_tokens, refused, names, final: final.choices[0].message.content !== null }));
