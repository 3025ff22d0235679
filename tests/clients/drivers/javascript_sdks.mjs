// The JavaScript SDKs of OpenAI, ElevenLabs and Deepgram, as driving.py says. They are in the folder
// that the environment names in SDKS.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { connect } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const require = createRequire(`${process.env.SDKS}/`);
const CHUNK_S = 0.1;
const SILENCE_S = 2; // after what is said, at least
const PATIENCE_S = 30; // and at most

const tell = (answer) => console.log(JSON.stringify(answer));

// A client tells of errors by other means than an exception.
class Failed extends Error {
  constructor(name, sentence) {
    super(sentence);
    this.name = name;
  }
}

// As a microphone: in real time, and then silence until `over`. failure: what has gone wrong.
async function speak(order, rate, send, over = () => true, failure = () => undefined) {
  const said = readFileSync(order.audio[rate]);
  const size = 2 * rate * CHUNK_S;
  const end = said.length / 2 / rate;
  const began = performance.now();
  for (let at = 0; ; at += size) {
    const sent = at / 2 / rate;
    if (failure()) throw failure();
    if (sent > end + SILENCE_S && over()) return;
    if (sent > end + PATIENCE_S) throw new Error("what was said is not understood to its end");
    await sleep(Math.max(0, began + 1000 * sent - performance.now()));
    const chunk = Buffer.alloc(size);
    if (at < said.length) said.copy(chunk, 0, at, at + size);
    send(chunk);
  }
}

// Whichever comes first; a failure is thrown.
const event = (emitter, name, failures = ["error"]) =>
  new Promise((resolve, reject) => {
    emitter.on(name, resolve);
    for (const failure of failures) emitter.on(failure, reject);
  });

async function openai(order) {
  const { OpenAI } = require("openai");
  const { OpenAIRealtimeWS } = require("openai/realtime/ws");
  const client = new OpenAI({ apiKey: order.key, baseURL: `${order.url}/v1` });
  // The SDK always says wss://; where there is no TLS, this is the way to connect.
  const createConnection = ({ host, port }) => connect({ host, port });
  const rt = new OpenAIRealtimeWS({ model: "gpt-4o-transcribe", options: { createConnection } }, client);
  let open = 0;
  let done = 0;
  let failed;
  rt.on("error", (error) => (failed ??= new Failed(error.constructor.name, error.message)));
  const about = "conversation.item.input_audio_transcription";
  rt.on(`${about}.delta`, ({ delta }) => tell({ partial: delta }));
  // The client commits here, once all is said.
  rt.on("input_audio_buffer.committed", () => (open += 1));
  rt.on(`${about}.completed`, ({ transcript }) => {
    done += 1;
    if (transcript) tell({ final: transcript });
  });
  rt.on("session.created", () => {
    rt.send({
      type: "session.update",
      session: {
        type: "transcription",
        audio: {
          input: {
            format: { type: "audio/pcm", rate: 24000 },
            transcription: { model: "gpt-4o-transcribe", language: "en" },
            turn_detection: null,
          },
        },
      },
    });
  });
  await Promise.race([event(rt, "session.updated", []), sleep(10000)]);
  const send = (chunk) => rt.send({ type: "input_audio_buffer.append", audio: chunk.toString("base64") });
  const failure = () => failed;
  try {
    await speak(order, 24000, send, () => true, failure);
    rt.send({ type: "input_audio_buffer.commit" });
    for (let waited = 0; !done && waited < PATIENCE_S; waited += CHUNK_S) await sleep(1000 * CHUNK_S);
    if (failed) throw failed;
  } finally {
    rt.close();
  }
}

async function elevenlabs(order) {
  const { AudioFormat, CommitStrategy, ElevenLabsClient, RealtimeEvents } = require("@elevenlabs/elevenlabs-js");
  const client = new ElevenLabsClient({ apiKey: order.key, baseUrl: order.url });
  const connection = await client.speechToText.realtime.connect({
    modelId: "scribe_v2_realtime",
    audioFormat: AudioFormat.PCM_16000,
    sampleRate: 16000,
    commitStrategy: CommitStrategy.VAD,
    languageCode: "en",
  });
  let spoken = "";
  let done = 0;
  let failed;
  connection.on(RealtimeEvents.PARTIAL_TRANSCRIPT, ({ text }) => {
    spoken = text;
    tell({ partial: text });
  });
  connection.on(RealtimeEvents.COMMITTED_TRANSCRIPT, ({ text }) => {
    spoken = "";
    done += 1;
    tell({ final: text });
  });
  connection.on(RealtimeEvents.AUTH_ERROR, ({ error }) => (failed ??= new Failed("auth_error", error)));
  connection.on(RealtimeEvents.ERROR, (error) => (failed ??= new Failed("error", error.error ?? error.message)));
  const opened = event(connection, RealtimeEvents.SESSION_STARTED, [RealtimeEvents.CLOSE]);
  try {
    await opened.catch(() => undefined);
    const send = (chunk) => connection.send({ audioBase64: chunk.toString("base64") });
    await speak(order, 16000, send, () => done && !spoken, () => failed);
  } finally {
    connection.close();
  }
}

async function deepgram(order) {
  const { DeepgramClient } = require("@deepgram/sdk");
  const socketUrl = order.url.replace("http", "ws");
  const environment = { base: order.url, production: socketUrl, agent: socketUrl, agentRest: order.url };
  const client = new DeepgramClient({ apiKey: order.key, environment });
  const connection = await client.listen.v1.connect({
    model: "nova-3",
    language: "en",
    encoding: "linear16",
    sample_rate: 16000,
    interim_results: "true",
    punctuate: "true",
    reconnectAttempts: 0,
  });
  let failed;
  connection.on("message", (message) => {
    const text = message.type === "Results" && message.channel.alternatives[0].transcript;
    if (text) tell({ [message.is_final ? "final" : "partial"]: text });
  });
  connection.on("error", (error) => (failed ??= new Failed(error.constructor.name, error.message)));
  const closed = event(connection, "close", []);
  connection.connect();
  await Promise.race([connection.waitForOpen(), closed, sleep(5000)]).catch((error) => (failed ??= error));
  try {
    await speak(order, 16000, (chunk) => connection.sendMedia(chunk), () => true, () => failed);
    connection.sendCloseStream({ type: "CloseStream" });
    await closed;
  } finally {
    connection.close();
  }
}

const client = { deepgram, elevenlabs, openai }[process.argv[2]];
for await (const line of createInterface({ input: process.stdin })) {
  try {
    await client(JSON.parse(line));
  } catch (error) {
    tell({ error: error.name, message: String(error.message) });
  }
  tell({ over: true });
}
