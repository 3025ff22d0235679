/**
 * A client for dalston in one file, for browsers and Node 22. It depends on nothing but WebSocket.
 *
 *     const session = new Session("wss://speech.example", { language: "en", sample_rate: 16000 });
 *     session.send(int16Array);            // whenever there is audio, connected or not
 *     session.end();
 *     for await (const event of session)   // an object for each message; see docs/protocol.md
 *       if (event.type === "transcript.final") console.log(event.text);
 *
 * A connection that breaks is replaced, and the session goes on: what was said meanwhile is sent,
 * what the server needs again is sent again, what it says again is told once (docs/clients.md).
 */

const PATH = "/v1/audio/transcriptions/stream";
const OPEN_MS = 10_000, BEGIN_MS = 40_000; // for a server to answer; to say something then
const RESUME_MS = 100_000; // of trouble, then we give up; a server keeps a session for 120 s
const STEADY_MS = 10_000; // a connection that lasts so long is no trouble any more
const BACKOFF_FIRST_MS = 200, BACKOFF_LAST_MS = 5000;
const PING_EVERY_MS = 2000, SILENT_MS = 8000; // one that says nothing for so long is lost
// How far the application may be ahead of the server, then it should wait; and how much audio is
// held, for an utterance of 30 s and what surrounds it come on top.
const AHEAD_S = 90, HELD_S = 150;
// Events that the application has not taken: from the first number on, of a segment's partials only
// the last waits; at the second it is told that it takes none.
const EVENTS_KEPT = 1000, EVENTS_MOST = 20_000;
const SAME_S = 0.04; // times of what is said again differ by less
// Closed so, a session is kept: going away, no code, broken off, failed, restarting, full, proxies.
const KEPT_CODES = [1001, 1005, 1006, 1011, 1012, 1013, 1014];
const ABNORMAL = 1006;
const PARTIAL = "transcript.partial";
const MADE_UP = ["transcript.withdrawn", "vad.speech_end"]; // by Heard, at times
const CANNOT = "the connection broke, and the session cannot go on";

/** The session is over before its end. `code` is the close code, `error` the server's last. */
export class SessionFailed extends Error {
  constructor(code, error, sentence) {
    super(sentence ?? error?.message ?? `the connection closed with code ${code}`);
    this.name = "SessionFailed";
    this.code = code;
    this.error = error;
  }
}

/** One transcription. */
export class Session {
  /** The session.end message, once it came; the later one, where two channels have one each. */
  ended = null;

  #urls;
  #turn = 0;
  #parameters;
  #credential;
  #ids; // of each channel's session, once it has begun; else null
  #ended = new Set(); // channels
  #line = null; // the connection that has been sent all there is
  #sent;
  #heard; // of each channel
  #error = null;
  #terminated = null;
  #events = new Waiting();
  #room = new Waiting();
  #failure = null;
  #over = false;
  #left = false;
  #trouble = null; // time of a loss after which nothing went further
  #wait = BACKOFF_FIRST_MS;

  /**
   * urls: of a gateway, or of any of several; parameters: those of the stream, keywords and
   * languages as arrays. With { channels: 2, multichannel: true } each event says its channel.
   *
   * token: for pages, which must hold no API key. A function that is called before each connection,
   * and fetches a short-lived token from your own backend, or promises one. apiKey: for programs;
   * in Node it is $DALSTON_API_KEY unless you say otherwise. Either travels as a subprotocol, for a
   * browser cannot set headers.
   */
  constructor(urls, parameters = {}, { token, apiKey } = {}) {
    this.#urls = [urls].flat();
    this.#parameters = { ...parameters, ack: true };
    const channels = String(parameters.multichannel) === "true" ? Number(parameters.channels) : 1;
    this.#ids = Array(channels).fill(null);
    this.#heard = this.#ids.map(() => new Heard());
    this.#sent = new Sent(channels);
    const key = apiKey ?? globalThis.process?.env?.DALSTON_API_KEY;
    this.#credential = token ?? (() => key);
    this.#run()
      .catch((error) => (this.#failure = error))
      .finally(() => this.#finish());
  }

  /**
   * Some audio in the encoding agreed on: an ArrayBuffer or a typed array. What is promised comes
   * when there is room for more; a microphone need not wait for it, a file should. Once the session
   * is over nothing is sent.
   */
  async send(audio) {
    const bytes = ArrayBuffer.isView(audio)
      ? new Uint8Array(audio.buffer, audio.byteOffset, audio.byteLength)
      : new Uint8Array(audio);
    if (bytes.length) this.#send(bytes.slice());
    while (this.#sent.full && !this.#over) await this.#room.more();
  }

  /** End the utterance here: its final comes at once. */
  flush() {
    this.#send(JSON.stringify({ type: "flush" }));
  }

  /** Forget the utterance that is being spoken. */
  clear() {
    this.#send(JSON.stringify({ type: "clear" }));
  }

  /** Change settings from here on, such as { language: "es" }. */
  configure(settings) {
    this.#send(JSON.stringify({ type: "config", ...settings }));
  }

  /** No more audio: what was said is finished, then session.end comes. */
  end() {
    this.#send(JSON.stringify({ type: "end" }));
  }

  /** Leave without waiting for the rest. */
  close() {
    this.#left = true;
    this.#finish();
  }

  /** Events until session.end, which is the last. Throws SessionFailed if it never comes. */
  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (this.#events.length) yield this.#events.shift();
      if (this.#over) break;
      await this.#events.more();
    }
    if (this.#failure) throw this.#failure;
  }

  #send(frame) {
    if (this.#over) return;
    this.#sent.hold(frame);
    this.#line?.socket.send(frame);
  }

  #tell(event) {
    const waiting = this.#events, last = waiting.at(-1);
    const replaces = event.type === PARTIAL && last?.type === PARTIAL;
    if (waiting.length > EVENTS_KEPT && replaces && last.segment_id === event.segment_id)
      waiting.pop();
    if (waiting.length >= EVENTS_MOST)
      throw new SessionFailed(ABNORMAL, null, `${EVENTS_MOST} events wait, and none is taken`);
    waiting.push(event);
  }

  #finish() {
    this.#over = true;
    this.#line?.end(ABNORMAL);
    this.#line = null;
    this.#events.wake();
    this.#room.wake();
  }

  async #run() {
    let line = await this.#begin();
    for (;;) {
      await this.#listen(line);
      if (this.ended || this.#left) return;
      if (!this.#mayResume(line.code)) throw new SessionFailed(line.code, this.#error);
      line = await this.#goOn(line);
    }
  }

  async #connect(more = {}) {
    const shown = await this.#credential();
    const url = new URL(this.#urls[this.#turn]);
    if (url.pathname === "/") url.pathname = PATH;
    for (const [name, value] of Object.entries({ ...this.#parameters, ...more }))
      url.searchParams.set(name, String(value));
    return new Line(url.href, shown ? ["dalston", `dalston.api-key.${shown}`] : []);
  }

  /** The first connection: to the first that answers. */
  async #begin() {
    for (let left = this.#urls.length; ; left--) {
      const line = await this.#connect();
      const opened = await line.opened();
      if (opened || this.#left) return line;
      if (left === 1) throw new SessionFailed(line.code, null);
      this.#turn = (this.#turn + 1) % this.#urls.length;
    }
  }

  /** Pass on what the server says until it closes, or has said everything. */
  async #listen(line) {
    const watching = setInterval(() => line.watch(), PING_EVERY_MS);
    try {
      for (let event; !this.ended && !this.#left && (event = await line.next()); )
        for (const news of this.#hear(event, line)) this.#tell(news);
    } finally {
      clearInterval(watching);
      this.#line = null;
      line.end(ABNORMAL);
    }
  }

  /** What the application is told of it. */
  #hear(event, line) {
    const channel = event.channel ?? 0, known = this.#ids[channel];
    switch (event.type) {
      case "session.begin":
        if (known && event.resumed_from === known) return []; // told as connection.resumed
        this.#ids[channel] = event.session_id ?? "";
        if (!this.#begun) break;
        this.#sent.begin(event.config);
        this.#say(line);
        break;
      case "session.end":
        if (this.#ended.has(channel)) return [];
        this.#ended.add(channel);
        if (this.#ended.size === this.#ids.length) this.ended = event;
        break;
      case "session.terminated":
        this.#terminated = event;
        if (this.#mayResume(ABNORMAL)) return [];
        break;
      case "ack":
        if (this.#sent.acknowledged(event, channel)) this.#trouble = null;
        this.#room.wake();
        return [];
      case "pong":
        return []; // we asked, not the application
      case "error":
        this.#error = event;
        if (answersConfig(event) && !this.#sent.answered(channel)) return [];
        break;
      case "config.updated":
        if (!this.#sent.answered(channel)) return [];
        break;
    }
    return this.#of(channel, this.#heard[channel].hear(event));
  }

  get #begun() {
    return !this.#ids.includes(null);
  }

  /** What was heard of a channel; where there are several, what was made up says its own. */
  #of(channel, events) {
    if (this.#ids.length === 1) return events;
    return events.map((event) => (MADE_UP.includes(event.type) ? { channel, ...event } : event));
  }

  #say(line) {
    for (const frame of this.#sent.frames()) line.socket.send(frame);
    this.#line = line;
  }

  /** Whether the server keeps the session for us, or never began one and did not say why. */
  #mayResume(code) {
    if (this.#ids.includes("")) return false;
    if (this.#terminated) return Boolean(this.#terminated.recoverable);
    if (this.#error && !(this.#begun && this.#error.recoverable)) return false;
    return KEPT_CODES.includes(code);
  }

  /**
   * Another connection of the same session; if it had not begun, the first of another. Throws
   * SessionFailed.
   */
  async #goOn(last) {
    const lost = performance.now();
    if (this.#trouble === null || lost - last.since > STEADY_MS) {
      this.#trouble = lost;
      this.#wait = BACKOFF_FIRST_MS;
    }
    const reason = this.#terminated?.reason ?? "";
    this.#terminated = null;
    this.#tell({ type: "connection.lost", code: last.code, reason });
    let why = reason || `it closed with code ${last.code}`, retryAfter = 0;
    for (let attempts = 1; ; attempts++) {
      // Jittered: the clients of a gateway that died do not come back all at once.
      const pause = Math.max(retryAfter, this.#wait / 2) * (1 + Math.random());
      if (performance.now() + pause > this.#trouble + RESUME_MS)
        throw new SessionFailed(
          last.code, this.#error, `the connection broke, and no other could be had: ${why}`,
        );
      await new Promise((resolve) => setTimeout(resolve, pause));
      if (this.#left) return last;
      this.#wait = Math.min(2 * this.#wait, BACKOFF_LAST_MS);
      retryAfter = 0;
      this.#turn = (this.#turn + 1) % this.#urls.length;
      let line;
      try {
        const last = this.#heard.map((heard) => heard.lastSegment);
        line = await this.#connect({
          ...(this.#begun && { resume_session_id: this.#ids.join() }),
          ...(this.#begun && last.some(Boolean) && { last_segment_id: last.join() }),
        });
      } catch (error) {
        why = `no token could be had: ${error.message}`;
        continue;
      }
      const event = (await line.opened()) ? await line.firstWord() : null;
      if (event?.type === "session.begin") {
        this.#resume(event, line);
        const after = Math.round(performance.now() - lost) / 1000;
        this.#tell({
          type: "connection.resumed", session_id: this.#ids.join(), attempts, after_seconds: after,
          resume_offset_ms: event.resume_offset_ms ?? 0,
        });
        return line;
      }
      line.end(ABNORMAL);
      if (event?.type === "error" && !event.recoverable)
        throw new SessionFailed(line.code, event, `${CANNOT}: ${event.message}`);
      why = event?.message ?? event?.type ?? `it closed with code ${line.code}`;
      // One of several may only be going away itself.
      if (attempts % this.#urls.length === 0) retryAfter = 1000 * (event?.retry_after ?? 0);
    }
  }

  #resume(begin, line) {
    if (!this.#begun) {
      this.#ids.fill(null);
      for (const news of this.#hear(begin, line)) this.#tell(news);
      return;
    }
    const offset = begin.resume_offset_ms;
    let sentence = null;
    if (begin.resumed_from !== this.#ids[begin.channel ?? 0]) sentence = "the server began another";
    else if (!this.#sent.goBack(offset))
      sentence = `the audio from ${offset / 1000} s on is not held any more`;
    if (sentence) {
      line.end(ABNORMAL);
      throw new SessionFailed(ABNORMAL, null, `${CANNOT}: ${sentence}`);
    }
    for (const [channel, heard] of this.#heard.entries())
      for (const news of this.#of(channel, heard.resumed(offset))) this.#tell(news);
    this.#say(line);
  }
}

/** One connection. */
class Line {
  since = performance.now();
  closed = false;
  code = ABNORMAL;
  #frames = new Waiting();
  #open = new Waiting();
  #asked = null; // time of a ping after which nothing was heard

  constructor(url, protocols) {
    this.socket = new WebSocket(url, protocols);
    this.socket.onopen = () => this.#open.wake();
    this.socket.onmessage = ({ data }) => {
      this.#asked = null;
      this.#frames.push(JSON.parse(data));
    };
    this.socket.onerror = () => this.end(ABNORMAL);
    this.socket.onclose = ({ code }) => this.end(code);
  }

  /** Whether the server answers. */
  async opened() {
    const late = setTimeout(() => this.end(ABNORMAL), OPEN_MS);
    while (!this.closed && this.socket.readyState === WebSocket.CONNECTING) await this.#open.more();
    clearTimeout(late);
    return this.socket.readyState === WebSocket.OPEN || this.#frames.length > 0;
  }

  /** The next message; undefined when there is none any more. */
  async next() {
    while (!this.#frames.length && !this.closed) await this.#frames.more();
    return this.#frames.shift();
  }

  /** What a server says when there is a slot, or none. */
  async firstWord() {
    for (;;) {
      const late = setTimeout(() => this.end(ABNORMAL), BEGIN_MS);
      const event = await this.next();
      clearTimeout(late);
      if (event?.type !== "session.queued") return event;
    }
  }

  /** To be called every PING_EVERY_MS. */
  watch() {
    const now = performance.now();
    if (this.socket.readyState !== WebSocket.OPEN) return;
    if (this.#asked !== null && now - this.#asked > SILENT_MS) return this.end(ABNORMAL);
    this.#asked ??= now;
    this.socket.send('{"type":"ping"}');
  }

  /** It is over, whether or not the other side ever says so. */
  end(code) {
    if (this.closed) return;
    this.closed = true;
    this.code = code;
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.onerror = () => {}; // of what is closed while it is opened
    this.socket.close();
    this.#open.wake();
    this.#frames.wake();
  }
}

/**
 * What the server may need again: the audio behind the last ack's `finalised`, and the messages
 * that stood among it. Audio is counted in bytes since the session began.
 */
class Sent {
  #channels; // that have a session each
  #acks = new Map(); // the last, by channel
  #held = []; // { frame, start, end, due: channels that are to answer a config, answered: that have }
  #first = 0;
  #end = 0;
  #from = 0; // audio before it is not sent again
  #processed = 0; // by the server
  #furthest = 0;
  #repeated; // by channel: configs that are sent again and were answered before
  #rate = 16_000;
  #frameBytes = 2; // one sample of every channel

  constructor(channels) {
    this.#channels = [...Array(channels).keys()];
    this.#repeated = this.#channels.map(() => 0);
  }

  begin({ sample_rate, encoding, channels }) {
    const width = { pcm_f32le: 4, mulaw: 1, alaw: 1 }[encoding] ?? 2;
    this.#rate = sample_rate;
    this.#frameBytes = width * channels * this.#channels.length;
  }

  hold(frame) {
    const start = this.#end;
    let due = [];
    if (typeof frame !== "string") this.#end += frame.length;
    else {
      const { type, channel } = JSON.parse(frame);
      if (type === "config") due = channel === undefined ? this.#channels : [channel];
    }
    this.#held.push({ frame, start, end: this.#end, due, answered: [] });
    while (this.#end - this.#first > this.#seconds(HELD_S)) this.#forget();
  }

  get full() {
    return this.#end - this.#processed > this.#seconds(AHEAD_S);
  }

  /** Whether the server is further than it ever was. */
  acknowledged(ack, channel) {
    this.#acks.set(channel, ack);
    const acks = [...this.#acks.values()];
    if (acks.length < this.#channels.length) return false;
    const least = (name) => this.#bytes(1000 * Math.min(...acks.map((one) => one[name])));
    this.#processed = least("processed");
    const needed = least("finalised");
    while (this.#held.length && this.#held[0].start < needed && this.#held[0].end <= needed)
      this.#forget();
    const further = this.#processed > this.#furthest;
    this.#furthest = Math.max(this.#furthest, this.#processed);
    return further;
  }

  /** Everything from there on is to be sent again; false if it is not held any more. */
  goBack(offsetMs) {
    const offset = this.#bytes(offsetMs);
    if (offset < this.#first) return false;
    this.#from = this.#processed = offset;
    const again = this.#held.filter(({ start }) => start >= offset);
    this.#repeated = this.#channels.map(
      (channel) => again.filter(({ answered }) => answered.includes(channel)).length,
    );
    return true;
  }

  /** All that is to be sent, in order. */
  *frames() {
    for (const { frame, start, end } of this.#held) {
      if (typeof frame === "string") {
        if (start >= this.#from) yield frame;
      } else if (end > this.#from) yield frame.subarray(Math.max(0, this.#from - start));
    }
  }

  /** A config was; whether the application has not heard that before. */
  answered(channel) {
    if (this.#repeated[channel]) {
      this.#repeated[channel]--;
      return false;
    }
    const waits = ({ due, answered }) => due.includes(channel) && !answered.includes(channel);
    this.#held.find(waits)?.answered.push(channel);
    return true;
  }

  #forget() {
    this.#first = this.#held.shift().end;
  }

  /** Of the first frame at or behind the offset; the sum of roundings is far below 1e-6. */
  #bytes(offsetMs) {
    return Math.ceil((offsetMs * this.#rate) / 1000 - 1e-6) * this.#frameBytes;
  }

  #seconds(seconds) {
    return seconds * this.#rate * this.#frameBytes;
  }
}

/** What the application was told: a server that goes on says again what is behind the offset. */
class Heard {
  lastSegment = "";
  #offset = null; // seconds; of a session that was gone on with
  #speech = null; // since when somebody speaks
  #onset = -1; // the last that were told
  #endpoint = -1;
  #until = 0; // end of the last final
  #shown = null; // partial: segment, end, stable text
  #eager = null; // segment whose eager final is not confirmed yet
  #invalidTold = false;

  /** Whoever goes on tells an eager final anew. */
  resumed(offsetMs) {
    this.#offset = offsetMs / 1000;
    const segment = this.#eager;
    this.#eager = null;
    return segment ? [{ type: "transcript.withdrawn", segment_id: segment }] : [];
  }

  /** What the application is told: the event, nothing, or something before it. */
  hear(event) {
    const again = this.#offset !== null;
    const at = event.timestamp;
    switch (event.type) {
      case "vad.speech_start": {
        // The other side of a cut begins where the final before it ends.
        const known = at <= this.#onset + SAME_S || at < this.#until - SAME_S / 2;
        if (again && known) return [];
        const missed = this.#missedEnd(at);
        this.#speech = this.#onset = at;
        return [...missed, event];
      }
      case "vad.speech_end":
        if (again && at <= this.#endpoint + SAME_S) return [];
        this.#speech = null;
        this.#endpoint = at;
        return [event];
      case PARTIAL:
        return this.#hearPartial(event, again);
      case "transcript.eager":
        if (number(event.segment_id) <= number(this.lastSegment)) return [];
        this.#eager = event.segment_id;
        return [event];
      case "transcript.withdrawn": {
        const told = this.#eager !== null;
        this.#eager = null;
        return told ? [event] : [];
      }
      case "transcript.final": {
        if (number(event.segment_id) <= number(this.lastSegment)) return [];
        this.lastSegment = event.segment_id;
        this.#eager = null;
        // A final that was missed is told without the events before it; what is open ends.
        const missed = this.#missedEnd(event.end);
        this.#until = event.end;
        this.#endpoint = Math.max(this.#endpoint, event.end);
        return [...missed, event];
      }
      case "session.end":
        return [...this.#missedEnd(event.total_duration), event];
      case "error": {
        const told = this.#invalidTold;
        if (event.code !== "invalid_audio") return [event];
        this.#invalidTold = true;
        return again && told ? [] : [event];
      }
      default:
        return [event];
    }
  }

  /** Speech ended while the connection was away: at the latest where the server goes on. */
  #missedEnd(before) {
    if (this.#speech === null || this.#offset === null) return [];
    const timestamp = Math.min(before, Math.max(this.#offset, this.#speech));
    this.#speech = null;
    this.#endpoint = timestamp;
    return [{ type: "vad.speech_end", timestamp }];
  }

  #hearPartial(event, again) {
    const segment = number(event.segment_id);
    if (again) {
      if (segment <= number(this.lastSegment) || event.end <= this.#endpoint + SAME_S) return [];
      if (this.#shown && segment <= this.#shown.segment) {
        const { segment: known, end, stable } = this.#shown;
        if (segment < known || event.end <= end || !event.text.startsWith(stable)) return [];
        event = { ...event, stable_chars: Math.max(event.stable_chars, length(stable)) };
      }
    }
    const stable = [...event.text].slice(0, event.stable_chars).join("");
    this.#shown = { segment, end: event.end, stable };
    return [event];
  }
}

/** A list that can be waited for. */
class Waiting extends Array {
  #wake = null;
  #woken = null;

  push(...items) {
    super.push(...items);
    this.wake();
  }

  wake() {
    this.#wake?.();
    this.#wake = this.#woken = null;
  }

  /** Until something came. */
  more() {
    this.#woken ??= new Promise((resolve) => (this.#wake = resolve));
    return this.#woken;
  }
}

function answersConfig({ code, recoverable }) {
  const codes = ["language_unsupported", "invalid_parameter", "invalid_message"];
  return recoverable && codes.includes(code);
}

/** Of seg_0007 it is 7; -1 of none. */
function number(segmentId) {
  return segmentId ? Number(segmentId.replace("seg_", "")) : -1;
}

/** The server counts characters, JavaScript halves of some. */
function length(text) {
  return [...text].length;
}
