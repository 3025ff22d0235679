// A caller in JavaScript: `stream.mjs FILE [--controls] URL...`. Raw audio, in real time, as
// --rate says; every event is a line of JSON, and the last line is the failure, if there was one.
import { readFileSync } from "node:fs";
import { Session } from "../../examples/javascript/dalston.js";

const [file, parameters, controls, ...urls] = process.argv.slice(2);
const { api_key: apiKey, tokens, ...asked } = JSON.parse(parameters);
// Each connection has the next token; null is a backend that cannot be reached.
async function token() {
  const next = tokens.shift();
  if (next === null) throw new Error("the backend is away");
  return next;
}
const audio = readFileSync(file);
const rate = asked.sample_rate ?? 16_000;
const session = new Session(urls, asked, tokens ? { token } : { apiKey });

async function speak() {
  const began = performance.now(), step = rate / 10; // samples
  const due = JSON.parse(controls); // [[sample, type, settings], ...]
  for (let at = 0; at < audio.length / 2; at += step) {
    for (; due.length && due[0][0] <= at; due.shift()) {
      const [, kind, settings] = due[0];
      session[kind](settings);
    }
    await session.send(audio.subarray(2 * at, 2 * (at + step)));
    const wait = began + (1000 * (at + step)) / rate - performance.now();
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, wait)));
  }
  session.end();
}

const speaking = speak();
try {
  for await (const event of session) console.log(JSON.stringify(event));
  await speaking;
} catch (error) {
  console.log(JSON.stringify({ type: "failed", code: error.code, message: error.message }));
  process.exit(1);
}
