// The browser's half of sse_middleware; all is told in sse-client.d.ts. The parser reads, the
// machine decides, and the client does what they say.
/** @import * as T from "./sse-client.js" */

export const VERSION = "0.1.0.dev0";

const LONGEST_EVENT = 1 << 24;
const LONGEST_PAUSE = 30_000;
const FIRST_ANSWER = 60_000;
const SILENCE = 15_000;
const CURSOR = /^([\w-]{22})-(\d+)(\.\w+)?$/;
const WAKES = ["online", "visibilitychange"];

export class SSEError extends Error {
  constructor(code, message, more) {
    super(message);
    Object.assign(this, { name: "SSEError", code }, more);
  }
}

/** @implements {T.EventParser} */
export class EventParser {
  retry;
  #decoder = new TextDecoder(); // drops a BOM
  #rest = "";
  #afterCR = false;
  #block = { data: [], size: 0 };
  #id;

  constructor(lastEventId = "") {
    this.lastEventId = this.#id = lastEventId;
  }

  feed(bytes) {
    const events = [];
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return events;
    if (this.#afterCR && text[0] === "\n") text = text.slice(1);
    let from = 0;
    for (const end of text.matchAll(/\r\n?|\n/g)) {
      this.#line(this.#rest + text.slice(from, end.index), events);
      this.#rest = "";
      from = end.index + end[0].length;
    }
    this.#afterCR = text.endsWith("\r");
    // Only new text is searched: a long line takes linear time.
    this.#rest += text.slice(from);
    if (this.#block.size + this.#rest.length > LONGEST_EVENT) throw new RangeError("too long");
    return events;
  }

  #line(line, events) {
    const block = this.#block;
    if (!line) {
      const id = (this.lastEventId = this.#id);
      const { event, data, hasId = false } = block;
      if (data.length) events.push({ event: event || "message", data: data.join("\n"), id, hasId });
      this.#block = { data: [], size: 0 };
      return;
    }
    const [, field, value = ""] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "data") {
      block.data.push(value);
      block.size += line.length;
    } else if (field === "event") {
      block.event = value;
    } else if (field === "id" && !value.includes("\0")) {
      this.#id = value;
      block.hasId = true;
    } else if (field === "retry" && /^\d{1,18}$/.test(value)) {
      this.retry = Number(value);
    }
  }
}

/** @implements {T.StreamMachine} Returns what to do. */
export class StreamMachine {
  state = "disconnected";
  deadline = Infinity;
  attempts = 0;
  id = "";
  traceId = "";
  streamId = "";
  #options = { reconnectDelay: 2000, maxReconnectAttempts: 3, eventPrefix: "", random: Math.random };
  #waits = false;
  #mayWake = false;
  #hasContent = false;
  #silence = SILENCE;
  #lastSign = 0;
  #retry;
  #ending; // the app's own `complete`, if that was last
  // Of the connection:
  #sentId = "";
  #sawStart = false;
  #progress = false;

  constructor(options = {}) {
    for (const name in options) this.#options[name] = options[name] ?? this.#options[name];
  }

  start(now, id = this.id) {
    if (this.state !== "disconnected") return [];
    const reset = this.#reset(this.#hasContent && (!id || id !== this.id) && "restarted");
    this.id = id;
    this.attempts = 0;
    this.#retry = undefined;
    this.#silence = this.#options.silenceThreshold ?? SILENCE;
    return [...reset, ...this.#to("connecting"), ...this.#open(now)];
  }

  opened(now) {
    this.heard(now);
    return this.#to("connected");
  }

  heard(now, retry = this.#retry) {
    this.#retry = retry;
    this.#lastSign = now;
    this.deadline = now + this.#silence;
  }

  refused(now, status, { retryAfter = 0, traceId = "" } = {}) {
    if (status === 204) return this.#finish({ reason: "finished" });
    const error = new SSEError("http", `no event stream: ${status}`, { status, traceId });
    if (![408, 425, 429, 502, 503, 504].includes(status)) return this.#fail(error);
    return this.#lost(now, "refused", { retryAfter, error });
  }

  event(now, wire) {
    const { eventPrefix, silenceThreshold } = this.#options;
    const name = wire.event.startsWith(eventPrefix) && wire.event.slice(eventPrefix.length);
    const data = parsed(wire.data);
    const ours = data?.stream_id && data.trace_id && name;
    if (ours === "heartbeat") {
      this.#hasProgress();
      return [["onHeartbeat", data]];
    }
    const { reason, error } = data ?? {};
    if (ours === "start" || ours === "reset") {
      const seconds = data.silence_threshold;
      this.#silence = silenceThreshold ?? (seconds === null ? Infinity : seconds * 1000 || SILENCE);
      this.heard(now);
      this.#sawStart = true;
      this.streamId = data.stream_id;
      this.traceId = data.trace_id;
      this.id = wire.id;
      const anew = ours === "reset" ? reason : !data.resumed && this.#beginsAnew();
      return [...this.#reset(anew), ["onStart", data]];
    }
    if (ours === "complete" && reason) {
      this.id = wire.id;
      return reason === "shutdown" ? this.#lost(now, reason) : this.#finish(data);
    }
    if (ours === "error" && error?.code) {
      const { code, message } = error;
      this.id = wire.id;
      const told = new SSEError(code, message, { traceId: data.trace_id });
      return code === "producer_lost" ? this.#lost(now, code, { error: told }) : this.#fail(told);
    }
    return this.#content(wire, name, data);
  }

  ended(now, { clean, offline, error, reason = clean ? "ended" : "cut" } = {}) {
    if (this.#ending || (clean && !this.#sawStart)) {
      return this.#finish({ reason: "finished", data: this.#ending?.data });
    }
    return this.#lost(now, reason, { offline, error, rotated: clean && this.#progress });
  }

  tick(now) {
    if (now < this.deadline) return [];
    return this.#waits ? this.#open(now) : this.ended(now, { reason: "silence" });
  }

  wake(now) {
    if (this.state === "connected" && now - this.#lastSign > this.#silence / 2) this.deadline = now;
    const effects = this.tick(now);
    return this.#waits && this.#mayWake ? [...effects, ...this.#open(now)] : effects;
  }

  stop(cancel = true) {
    if (this.state === "disconnected") return [];
    const told = cancel && CURSOR.test(this.id) ? [["cancel", this.id]] : [];
    if (cancel) this.id = "";
    return [...told, ...this.#to("disconnected", { reason: "stopped" })];
  }

  #open(now) {
    this.#waits = this.#sawStart = this.#progress = false;
    this.#ending = undefined;
    this.#sentId = this.id;
    const choose = this.id ? Math.min : Math.max; // what is resumed is answered at once
    this.deadline = now + choose(FIRST_ANSWER, this.#silence);
    return [["open", this.id]];
  }

  #content(wire, name, data) {
    const had = CURSOR.exec(this.id);
    const got = wire.hasId && CURSOR.exec(wire.id);
    if (had && got && had[1] === got[1] && Number(got[2]) <= Number(had[2])) return [];
    const reset = this.#reset(!this.#sawStart && !this.#progress && this.#beginsAnew());
    this.#hasProgress();
    this.#hasContent = true;
    this.id = wire.id;
    this.#ending = name === "complete" ? { data } : undefined;
    return [...reset, ["onContent", data, wire]];
  }

  // Where the answer does not say. An app knows its own ids.
  #beginsAnew() {
    const knows = this.#sentId && !CURSOR.test(this.#sentId);
    return this.#hasContent && !knows && "restarted";
  }

  #reset(reason) {
    if (!reason) return [];
    this.#hasContent = false;
    return [["onReset", { reason }]];
  }

  #hasProgress() {
    this.#progress = true;
    this.attempts = 0;
  }

  #lost(now, reason, { offline, rotated, retryAfter = 0, error } = {}) {
    const { maxReconnectAttempts: most, reconnectDelay, random } = this.#options;
    const counts = !offline && !rotated;
    if (counts && this.attempts >= most) {
      const why = `gave up: ${error?.message ?? reason}`;
      return this.#fail(new SSEError("gave_up", why, { traceId: this.traceId, cause: error }));
    }
    if (counts) this.attempts++;
    const least = this.#retry ?? reconnectDelay;
    const grown = offline ? LONGEST_PAUSE : least * 2 ** (this.attempts - 1);
    const pause = Math.max(least, Math.min(grown, LONGEST_PAUSE));
    const delay = Math.max(pause * (1 + random() / 2), retryAfter);
    this.#waits = true;
    this.#mayWake = retryAfter <= 0;
    this.deadline = now + delay;
    return [["close"], ...this.#to("reconnecting", { reason, delay })];
  }

  #finish(told) {
    const { reason } = told;
    this.id = "";
    const complete = { ...told, incomplete: reason !== "finished" };
    return [["onComplete", complete], ...this.#to("disconnected", { reason })];
  }

  #fail(error) {
    return [["onError", error], ...this.#to("disconnected", { reason: error.code })];
  }

  #to(state, detail) {
    this.state = state;
    const told = ["onStateChange", state, { attempt: this.attempts, ...detail }];
    if (state !== "disconnected") return [told];
    this.deadline = Infinity;
    this.#waits = false;
    return [["close"], told];
  }
}

/** @implements {T.SSEClient} */
export class SSEClient {
  lastMessageTime;
  heartbeat;
  error;
  #options;
  #machine;
  #turn = 0;
  #connection = new AbortController();
  #timer;
  #queue;
  #taken;
  #given;
  #waking = () => {
    if (!globalThis.document?.hidden) this.#run(this.#machine.wake(Date.now()));
  };

  /** @param {T.SSEClientOptions} options */
  constructor(options) {
    this.#options = options;
    this.#machine = new StreamMachine(options);
  }

  get state() {
    return this.#machine.state;
  }

  get traceId() {
    return this.#machine.traceId;
  }

  get streamId() {
    return this.#machine.streamId;
  }

  get reconnectAttempts() {
    return this.#machine.attempts;
  }

  get lastEventId() {
    return this.#machine.id || this.#kept();
  }

  start() {
    if (this.state !== "disconnected") return;
    this.#turn++;
    this.#connection.abort();
    this.error = undefined;
    for (const name of WAKES) globalThis.addEventListener?.(name, this.#waking);
    this.#run(this.#machine.start(Date.now(), this.lastEventId));
  }

  stop({ cancel = true } = {}) {
    const effects = this.#machine.stop(cancel);
    this.#turn += effects.length;
    this.#run(effects);
  }

  async *[Symbol.asyncIterator]() {
    const queue = (this.#queue = []);
    try {
      this.start();
      while (queue.length || this.state !== "disconnected") {
        if (queue.length) yield queue.shift();
        else await new Promise((resolve) => (this.#given = resolve));
        this.#taken?.();
      }
      if (this.error) throw this.error;
    } finally {
      this.#queue = undefined;
      this.#taken?.();
      this.stop();
    }
  }

  #run(effects) {
    const turn = this.#turn;
    for (const [what, first, second] of effects) {
      if (turn !== this.#turn) return; // a callback has stopped or started us
      if (what === "open") this.#connect(first);
      else if (what === "close") this.#connection.abort();
      else if (what === "cancel") this.#cancel(first);
      else this.#tell(what, first, second);
    }
    if (this.state === "disconnected") {
      for (const name of WAKES) globalThis.removeEventListener?.(name, this.#waking);
      this.#keep();
    }
    this.#arm();
    this.#given?.();
  }

  #tell(what, first, second) {
    if (what === "onHeartbeat") this.heartbeat = first;
    if (what === "onError") this.error = first;
    if (what === "onContent") this.#queue?.push({ ...second, data: first });
    if (what === "onReset") this.#queue?.push({ event: "reset", data: first, id: "", reset: true });
    if (first.incomplete) {
      const told = `ended early: ${first.reason}`;
      this.error = new SSEError(first.reason, told, { traceId: this.traceId });
    }
    try {
      this.#options[what]?.(first, second);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  #arm() {
    const { deadline } = this.#machine;
    clearTimeout(this.#timer);
    if (deadline === Infinity) return;
    const delay = Math.min(deadline - Date.now(), 2 ** 31 - 1); // a longer one fires at once
    this.#timer = setTimeout(() => this.#run(this.#machine.tick(Date.now())), delay);
  }

  async #ask(name, id, request) {
    const { url, headers, credentials, fetch = globalThis.fetch } = this.#options;
    const address = new URL(url, globalThis.document?.baseURI);
    const own = new Headers(typeof headers === "function" ? await headers() : headers);
    if (request.signal) own.set("accept", "text/event-stream;events=named"); // no preflight
    else own.delete("content-type");
    if (CURSOR.test(id)) address.search = `?${name}=${id}${address.search.replace("?", "&")}`;
    else if (id) own.set("last-event-id", id);
    return fetch(address, { credentials, headers: own, cache: "no-store", ...request });
  }

  #cancel(id) {
    this.#ask("sse_cancel", id, { method: "POST", keepalive: true }).catch(() => {});
  }

  async #connect(id) {
    const { signal } = (this.#connection = new AbortController());
    const { method, body } = this.#options;
    let ended;
    try {
      const response = await this.#ask("last_event_id", id, { method, body, signal });
      if (!signal.aborted) ended = await this.#read(response, id, signal);
    } catch (error) {
      const offline = globalThis.navigator?.onLine === false;
      ended = () => this.#machine.ended(Date.now(), { offline, error });
    }
    if (!signal.aborted) this.#run(ended());
  }

  async #read({ status, headers, body }, id, signal) {
    const machine = this.#machine;
    if (status !== 200 || !/^text\/event-stream\b/i.test(headers.get("content-type"))) {
      const after = headers.get("retry-after");
      const retryAfter = Number(after) * 1000 || Date.parse(after) - Date.now() || 0;
      const traceId = headers.get("x-trace-id") ?? "";
      return () => machine.refused(Date.now(), status, { retryAfter, traceId });
    }
    this.#run(machine.opened(Date.now()));
    const parser = new EventParser(id);
    const reader = body.getReader();
    while (!signal.aborted) {
      const { value, done } = await reader.read();
      if (done || signal.aborted) break;
      const events = parser.feed(value);
      machine.heard((this.lastMessageTime = Date.now()), parser.retry);
      for (const event of events) {
        this.#run(machine.event(Date.now(), event));
        if (signal.aborted) return;
      }
      machine.id = parser.lastEventId;
      this.#keep();
      while (this.#queue?.length > 256 && !signal.aborted) {
        machine.deadline = Infinity; // it is us who are silent
        this.#arm();
        await new Promise((resolve) => (this.#taken = resolve));
        if (!signal.aborted) machine.heard(Date.now());
      }
      this.#arm();
    }
    return () => machine.ended(Date.now(), { clean: true });
  }

  #kept() {
    const { keep, replay = true, url } = this.#options;
    try {
      const [of, id] = JSON.parse(sessionStorage.getItem(keep));
      if (of !== url) return "";
      return replay ? id.replace(CURSOR, "$1-0") : id;
    } catch {
      return "";
    }
  }

  #keep() {
    const { keep, url } = this.#options;
    const { id } = this.#machine;
    if (!keep) return;
    try {
      if (!id || CURSOR.exec(id)?.[3]) sessionStorage.removeItem(keep);
      else sessionStorage.setItem(keep, JSON.stringify([url, id]));
    } catch {}
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
