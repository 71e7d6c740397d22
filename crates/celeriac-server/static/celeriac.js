// The client of celeriac's streams for browsers, Node.js, Deno and Bun: no dependency, no build step.
//
//   import { follow, text } from "/celeriac.js";
//   for await (const { event, data } of follow(`/api/v1/tasks/${id}/events`)) { ... }
//   await text(`/api/v1/tasks/${id}/events`, { onText: (piece) => { output.append(piece); } });
//
// Unlike EventSource it sends a token as a header, says why a stream was refused, notices a connection that has gone
// silent, and ends with the stream.

/**
 * What a stream says.
 * @typedef {object} StreamEvent
 * @property {string} id The position: that of the last event that had one; "" before the first.
 * @property {string} event `token`, `progress`, `end` ...; `message` where the server gave no name.
 * @property {any} data The content, read as JSON; the text as it is where it is none.
 */

/**
 * How to follow a stream.
 * @typedef {object} FollowOptions
 * @property {string | (() => string | Promise<string>)} [token] Sent with each request; a function is asked each time.
 * @property {number | string} [after] Begins after this position.
 * @property {AbortSignal} [signal] Ends the stream: the iteration throws the signal's reason.
 * @property {typeof globalThis.fetch} [fetch] What makes requests. Default: the platform's `fetch`.
 * @property {number} [idle] A connection that is silent for so many milliseconds is taken for dead. Default 60,000; a
 *   server says something every 15 s.
 * @property {(attempt: number, why: unknown) => void} [onReconnect] Told before each reconnect.
 */

const RETRY = 1_000;
const RETRY_MAX = 30_000;
const RETRY_AFTER_MAX = 300_000;
const IDLE = 60_000;
const EVENT_CHARS_MAX = 32 * 1024 * 1024;

/** The server refuses the request, or what it sends is no stream of events: to repeat it is of no use. */
export class StreamError extends Error {
  /**
   * @param {string} message
   * @param {number} status The status of the answer.
   * @param {any} [problem] The problem document (RFC 9457), where there is one.
   */
  constructor(message, status, problem) {
    super(message);
    this.name = "StreamError";
    this.status = status;
    this.problem = problem;
  }
}

/** Reads server-sent events out of bytes, however they are cut. One parser reads one connection. */
export class Parser {
  #decoder = new TextDecoder("utf-8");
  #line = "";
  #afterReturn = false;
  #event = "";
  /** @type {string | null} */
  #data = null;
  #id;

  /** @param {string} [id] The last id seen on the connections before. */
  constructor(id = "") {
    this.#id = id;
    /** @type {number | undefined} Milliseconds to wait before a reconnect, where the server has said so. */
    this.retry = undefined;
    /** The id after which a reconnect begins. */
    this.lastId = id;
  }

  /**
   * Takes the next bytes, and returns the events that they complete.
   * @param {Uint8Array} bytes
   * @returns {{ id: string, event: string, data: string }[]}
   */
  push(bytes) {
    const out = [];
    // The decoder keeps a character that is cut in half for the next call, and drops a byte order mark at the start.
    let chunk = this.#decoder.decode(bytes, { stream: true });
    if (this.#afterReturn && chunk !== "") {
      this.#afterReturn = false;
      if (chunk[0] === "\n") chunk = chunk.slice(1);
    }
    let start = 0;
    for (const ending of chunk.matchAll(/\r\n|\r|\n/g)) {
      this.#takeLine(this.#line + chunk.slice(start, ending.index), out);
      this.#line = "";
      start = ending.index + ending[0].length;
    }
    // A line feed that comes with the next bytes belongs to this carriage return.
    if (chunk !== "") this.#afterReturn = chunk.endsWith("\r");
    this.#line += chunk.slice(start);
    if (this.#line.length + (this.#data?.length ?? 0) > EVENT_CHARS_MAX) {
      throw new StreamError(`an event of more than ${EVENT_CHARS_MAX} characters`, 200);
    }
    return out;
  }

  /**
   * @param {string} line
   * @param {{ id: string, event: string, data: string }[]} out
   */
  #takeLine(line, out) {
    if (line === "") {
      this.lastId = this.#id;
      if (this.#data !== null) {
        out.push({ id: this.#id, event: this.#event || "message", data: this.#data.slice(0, -1) });
      }
      this.#event = "";
      this.#data = null;
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "event") this.#event = value;
    else if (name === "data") this.#data = (this.#data ?? "") + value + "\n";
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
  }
}

/**
 * Follows a stream to its end, over as many connections as it takes: each goes on after the last event given, so that
 * none is missed or given twice. Leaving the loop closes the connection, and changes nothing for the task.
 * @param {string | URL} url
 * @param {FollowOptions} [options]
 * @returns {AsyncGenerator<StreamEvent, void, void>}
 * @throws {StreamError} When the server refuses the request for good: an unknown task, a token that is not good.
 */
export async function* follow(url, options = {}) {
  const { token, signal, idle = IDLE, onReconnect } = options;
  const request = options.fetch ?? globalThis.fetch;
  // A mistake in the URL looks like a network that is away: here it throws instead of being tried for ever.
  if (!options.fetch) new Request(url);
  let lastId = options.after === undefined ? "" : String(options.after);
  let retry = RETRY;
  let attempt = 0;
  for (;;) {
    signal?.throwIfAborted();
    /** @type {unknown} */
    let why = new Error("the connection was closed");
    /** @type {number | undefined} */
    let pause;
    // Ends this connection: by the signal, by silence, or when the loop is left.
    const connection = new AbortController();
    const stop = () => connection.abort(signal?.reason);
    signal?.addEventListener("abort", stop, { once: true });
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let watch;
    const awake = () => {
      clearTimeout(watch);
      watch = setTimeout(() => connection.abort(new Error(`the connection was silent for ${idle} ms`)), idle);
    };
    try {
      awake();
      const headers = new Headers({ Accept: "text/event-stream" });
      const bearer = typeof token === "function" ? await token() : token;
      if (bearer) headers.set("Authorization", `Bearer ${bearer}`);
      if (lastId !== "") headers.set("Last-Event-ID", lastId);
      const response = await request(url, { headers, cache: "no-store", signal: connection.signal });
      if (response.status === 204) return;
      if (response.status !== 200) {
        const passing = [408, 425, 429].includes(response.status) || response.status >= 500;
        const refusal = await refused(response);
        if (!passing) throw refusal;
        why = refusal;
        const seconds = Number(response.headers.get("Retry-After") ?? NaN);
        if (seconds >= 0) pause = Math.min(seconds * 1_000, RETRY_AFTER_MAX);
      } else {
        const kind = response.headers.get("Content-Type") ?? "";
        if (!/^\s*text\/event-stream/i.test(kind) || !response.body) {
          throw new StreamError(`the server sent no stream of events: its content type is ${kind}`, 200);
        }
        const parser = new Parser(lastId);
        const reader = response.body.getReader();
        for (;;) {
          const { done, value } = await reader.read();
          if (done) break;
          awake();
          attempt = 0;
          for (const { id, event, data } of parser.push(value)) {
            lastId = id;
            // Whoever takes its time with an event is not to blame the connection.
            clearTimeout(watch);
            yield { id, event, data: read(data) };
            if (event === "end") return;
            awake();
          }
          lastId = parser.lastId;
          retry = Math.min(parser.retry ?? retry, RETRY_MAX);
        }
      }
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof StreamError) throw error;
      why = connection.signal.aborted ? connection.signal.reason : error;
    } finally {
      clearTimeout(watch);
      signal?.removeEventListener("abort", stop);
      connection.abort();
    }
    attempt += 1;
    onReconnect?.(attempt, why);
    // As the server asks; longer after each connection that gave nothing, and never in step with other clients.
    pause ??= Math.min(retry * 2 ** Math.min(attempt - 1, 10), RETRY_MAX);
    await sleep(pause * (1 + Math.random() / 4), signal);
  }
}

/**
 * Gathers the text that a task streams in tokens. A run that begins again, after a retry or a lost worker, streams its
 * text from the start: `onRestart` is told, and the text before it is dropped.
 * @param {string | URL} url
 * @param {FollowOptions & {
 *   onText?: (piece: string, whole: string) => void,
 *   onRestart?: () => void,
 *   onEvent?: (event: StreamEvent) => void,
 * }} [options]
 * @returns {Promise<{ text: string, end: any }>} The text, and what the record `end` says: `state` with `result` or
 *   `error`; null when the stream was over already.
 */
export async function text(url, options = {}) {
  let whole = "";
  let end = null;
  for await (const event of follow(url, options)) {
    options.onEvent?.(event);
    if (event.event === "token" && typeof event.data?.text === "string") {
      whole += event.data.text;
      options.onText?.(event.data.text, whole);
    } else if (event.event === "state" && event.data?.state === "STARTED" && whole !== "") {
      whole = "";
      options.onRestart?.();
    } else if (event.event === "end") {
      end = event.data;
    }
  }
  return { text: whole, end };
}

/** @param {string} data */
function read(data) {
  try {
    return JSON.parse(data);
  } catch {
    return data;
  }
}

/** @param {Response} response */
async function refused(response) {
  /** @type {any} */
  let problem;
  try {
    problem = read(await response.text());
  } catch {
    // The status says enough.
  }
  const detail = problem?.detail ?? problem?.title ?? response.statusText;
  return new StreamError(`the server answered ${response.status}: ${detail}`, response.status, problem);
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} [signal]
 * @returns {Promise<void>}
 */
function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
    if (signal?.aborted) stop();
  });
}
