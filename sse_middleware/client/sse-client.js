// The browser client of sse_middleware, documented in sse-client.d.ts: EventParser reads,
// StreamMachine decides, SSEClient acts.

export const VERSION = "0.1.0";

const MAX_EVENT_LENGTH = 1 << 24;
const MIN_DELAY = 100;
const MAX_DELAY = 30_000;
const SHORT_LIVED = 500;
const MAX_BODY = 1 << 20; // of a POST that the server compares with the first one
const FIRST_BYTE_TIMEOUT = 60_000;
const DEFAULT_SILENCE = 15_000;
const EVENT_ID = /^([\w-]{22})-(\d+)(\.\w+)?$/; // ours
const WAKE_EVENTS = ["online", "visibilitychange"];

const NUMBERS = ["silenceThreshold", "maxReconnectAttempts", "reconnectDelay"];
const CALLBACKS = ["onStart", "onContent", "onReset", "onHeartbeat", "onComplete", "onError"];
const FUNCTIONS = ["fetch", ...CALLBACKS, "onStateChange"];
const OTHERS = ["url", "method", "body", "headers", "credentials", "keep", "replay", "eventPrefix"];
const OPTIONS = [...OTHERS, ...FUNCTIONS, ...NUMBERS];

export class SSEError extends Error {
  constructor(code, message, more) {
    super(message);
    Object.assign(this, { name: "SSEError", code }, more);
  }
}

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
    let offset = 0;
    for (const end of text.matchAll(/\r\n?|\n/g)) {
      this.#line(this.#rest + text.slice(offset, end.index), events);
      this.#rest = "";
      offset = end.index + end[0].length;
    }
    this.#afterCR = text.endsWith("\r");
    // Only new text is searched: a long line takes linear time.
    this.#rest += text.slice(offset);
    if (this.#block.size + this.#rest.length > MAX_EVENT_LENGTH) throw new RangeError("too long");
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

export class StreamMachine {
  state = "disconnected";
  deadline = Infinity;
  attempts = 0;
  id = "";
  traceId = "";
  streamId = "";
  #options = {
    reconnectDelay: 2000,
    maxReconnectAttempts: 3,
    eventPrefix: "",
    random: Math.random,
    isAway: () => false,
  };
  #isWaiting = false;
  #mayWake = false;
  #failures = 0; // consecutive connections without progress
  #shortLived = 0; // consecutive connections that ended soon
  #hasConnected = false;
  #hasContent = false;
  #silence = DEFAULT_SILENCE;
  #lastReceived = 0;
  #retry;
  #appComplete; // the app's `complete`, if it came last
  // Of the current connection:
  #openedAt = 0;
  #sentId = "";
  #hasStart = false;
  #hasProgress = false;

  constructor(options = {}) {
    for (const name in options) this.#options[name] = options[name] ?? this.#options[name];
  }

  start(now, id = this.id) {
    if (this.state !== "disconnected") return [];
    const reset = this.#reset(this.#hasContent && (!id || id !== this.id) && "restarted");
    this.id = id;
    this.attempts = this.#failures = this.#shortLived = 0;
    this.#hasConnected = id !== "";
    this.#retry = undefined;
    this.#silence = this.#silenceAfter();
    return [...reset, ...this.#enter("connecting"), ...this.#open(now)];
  }

  opened(now) {
    this.#hasConnected = true;
    this.received(now);
    return this.#enter("connected");
  }

  received(now, retry = this.#retry) {
    this.#retry = retry;
    this.#lastReceived = now;
    this.deadline = now + this.#silence;
  }

  refused(now, status, { retryAfter = 0, traceId = "" } = {}) {
    if (status === 204) return this.#finish({ reason: "finished" });
    const error = new SSEError("http", `no event stream: ${status}`, { status, traceId });
    const mayRecover = status >= 500 && this.#hasConnected; // a proxy in front of a dead server
    if (mayRecover || [408, 425, 429, 502, 503, 504].includes(status)) {
      return this.#reconnect(now, "refused", { retryAfter, error });
    }
    return this.#fail(error);
  }

  event(now, wire) {
    const { eventPrefix } = this.#options;
    const name = wire.event.startsWith(eventPrefix) && wire.event.slice(eventPrefix.length);
    const data = parseJSON(wire.data);
    const control = data?.stream_id && data.trace_id && name;
    if (control === "heartbeat") {
      this.#recordProgress();
      return [["onHeartbeat", data]];
    }
    const { reason, error } = data ?? {};
    if (control === "start" || control === "reset") {
      this.#silence = this.#silenceAfter(data.silence_threshold);
      this.received(now);
      this.#hasStart = true;
      this.streamId = data.stream_id;
      this.traceId = data.trace_id;
      this.id = wire.id;
      const resetReason = control === "reset" ? reason : !data.resumed && this.#restartReason();
      return [...this.#reset(resetReason), ["onStart", data]];
    }
    if (control === "complete" && reason) {
      this.id = wire.id;
      return reason === "shutdown" ? this.#reconnect(now, reason) : this.#finish(data);
    }
    if (control === "error" && error?.code) {
      const { code, message } = error;
      this.id = wire.id;
      const failure = new SSEError(code, message, { traceId: data.trace_id });
      if (code !== "producer_lost") return this.#fail(failure);
      return this.#reconnect(now, code, { error: failure });
    }
    return this.#content(wire, name, data);
  }

  ended(now, { clean, error, reason = clean ? "ended" : "cut" } = {}) {
    if (this.#appComplete || (clean && !this.#hasStart)) {
      return this.#finish({ reason: "finished", data: this.#appComplete?.data });
    }
    return this.#reconnect(now, reason, { error, rotated: clean && this.#hasProgress });
  }

  tick(now) {
    if (now < this.deadline) return [];
    return this.#isWaiting ? this.#open(now) : this.ended(now, { reason: "silence" });
  }

  wake(now, silence = 0) {
    const isSilent = Math.max(now - this.#lastReceived, silence) > this.#silence / 2;
    if (this.state === "connected" && isSilent) this.deadline = now;
    const effects = this.tick(now);
    return this.#isWaiting && this.#mayWake ? [...effects, ...this.#open(now)] : effects;
  }

  stop(cancel = true) {
    const [, , , ending] = EVENT_ID.exec(this.id) ?? [, , , "of the app"];
    const effects = cancel && !ending ? [["cancel", this.id]] : [];
    if (cancel) this.id = "";
    if (this.state === "disconnected") return effects;
    return [...effects, ...this.#enter("disconnected", { reason: "stopped" })];
  }

  #silenceAfter(announced) {
    const seconds = this.#options.silenceThreshold ?? announced;
    return seconds === null ? Infinity : seconds * 1000 || DEFAULT_SILENCE;
  }

  #open(now) {
    this.#isWaiting = this.#hasStart = this.#hasProgress = false;
    this.#appComplete = undefined;
    this.#sentId = this.id;
    this.#openedAt = now;
    const choose = this.id ? Math.min : Math.max; // a resumed stream responds at once
    this.deadline = now + choose(FIRST_BYTE_TIMEOUT, this.#silence);
    return [["open", this.id]];
  }

  #content(wire, name, data) {
    const previous = EVENT_ID.exec(this.id);
    const current = wire.hasId && EVENT_ID.exec(wire.id);
    if (previous && current && previous[1] === current[1]) {
      if (Number(current[2]) <= Number(previous[2])) return []; // a duplicate
    }
    const reset = this.#reset(!this.#hasStart && !this.#hasProgress && this.#restartReason());
    this.#recordProgress();
    this.#hasContent = true;
    this.id = wire.id;
    this.#appComplete = name === "complete" ? { data } : undefined;
    return [...reset, ["onContent", data, wire]];
  }

  // Without `resumed` or `reset` in the response. An app resumes from its own ids.
  #restartReason() {
    const appResumes = this.#sentId && !EVENT_ID.test(this.#sentId);
    return this.#hasContent && !appResumes && "restarted";
  }

  #reset(reason) {
    if (!reason) return [];
    this.#hasContent = false;
    return [["onReset", { reason }]];
  }

  #recordProgress() {
    this.#hasProgress = true;
    this.attempts = this.#failures = 0;
  }

  #reconnect(now, reason, { rotated, retryAfter = 0, error } = {}) {
    const { maxReconnectAttempts, isAway } = this.#options;
    const counts = !rotated && !isAway();
    if (counts && this.attempts >= maxReconnectAttempts) {
      const message = `gave up: ${error?.message ?? reason}`;
      return this.#fail(new SSEError("gave_up", message, { traceId: this.traceId, cause: error }));
    }
    if (counts) this.attempts++;
    if (!rotated) this.#failures++;
    this.#shortLived = now - this.#openedAt < SHORT_LIVED ? this.#shortLived + 1 : 0;
    const delay = Math.max(this.#delay(), retryAfter);
    this.#isWaiting = true;
    this.#mayWake = retryAfter <= 0;
    this.deadline = now + delay;
    return [["close"], ...this.#enter("reconnecting", { reason, delay })];
  }

  // Connections that end soon are slowed down even if each of them brings an event.
  #delay() {
    const { reconnectDelay, random } = this.#options;
    const minimum = Math.max(this.#retry ?? reconnectDelay, MIN_DELAY);
    const afterFailures = Math.min(minimum * 2 ** (this.#failures - 1), MAX_DELAY);
    const afterShort = Math.min(MIN_DELAY * 2 ** (this.#shortLived - 1), reconnectDelay);
    return Math.max(minimum, afterFailures, afterShort) * (1 + random() / 2);
  }

  #finish(data) {
    const { reason } = data;
    this.id = "";
    const complete = { ...data, incomplete: reason !== "finished" };
    return [["onComplete", complete], ...this.#enter("disconnected", { reason })];
  }

  #fail(error) {
    return [["onError", error], ...this.#enter("disconnected", { reason: error.code })];
  }

  #enter(state, detail) {
    this.state = state;
    const effect = ["onStateChange", state, { attempt: this.attempts, ...detail }];
    if (state !== "disconnected") return [effect];
    this.deadline = Infinity;
    this.#isWaiting = false;
    return [["close"], effect];
  }
}

export class SSEClient {
  lastMessageTime;
  heartbeat;
  error;
  #options;
  #machine;
  #run = 0;
  #connection = new AbortController();
  #timer;
  #body; // a promise of the serialised body and its type
  #queue;
  #onRead;
  #onQueued;
  #onWake = () => {
    if (globalThis.document?.hidden) return;
    const silence = Date.now() - this.lastMessageTime || 0; // with the time in which the device slept
    this.#apply(this.#machine.wake(now(), silence));
  };

  constructor(options) {
    checkOptions(options);
    this.#options = options;
    this.#machine = new StreamMachine({ isAway, ...options });
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
    return this.#machine.id || this.#loadId();
  }

  start() {
    if (this.state !== "disconnected") return;
    this.#run++;
    this.#connection.abort();
    this.error = undefined;
    const canReadAgain = !(this.#options.body instanceof ReadableStream);
    if (!this.lastEventId && canReadAgain) this.#body = undefined;
    for (const name of WAKE_EVENTS) globalThis.addEventListener?.(name, this.#onWake);
    this.#apply(this.#machine.start(now(), this.lastEventId));
  }

  stop({ cancel = true } = {}) {
    const effects = this.#machine.stop(cancel);
    this.#run += effects.length;
    this.#apply(effects);
  }

  async *[Symbol.asyncIterator]() {
    const queue = (this.#queue = []);
    try {
      this.start();
      while (queue.length || this.state !== "disconnected") {
        if (queue.length) yield queue.shift();
        else await new Promise((resolve) => (this.#onQueued = resolve));
        this.#onRead?.();
      }
      if (this.error) throw this.error;
    } finally {
      this.#queue = undefined;
      this.#onRead?.();
      if (this.state !== "disconnected") this.stop();
    }
  }

  #apply(effects) {
    const run = this.#run;
    for (const [name, first, second] of effects) {
      if (run !== this.#run) return; // a callback stopped or restarted it
      if (name === "open") this.#connect(first);
      else if (name === "close") this.#connection.abort();
      else if (name === "cancel") this.#cancel(first);
      else this.#dispatch(name, first, second);
    }
    if (this.state === "disconnected") {
      for (const name of WAKE_EVENTS) globalThis.removeEventListener?.(name, this.#onWake);
      this.#saveId();
    }
    this.#setTimer();
    this.#onQueued?.();
  }

  #dispatch(name, first, second) {
    if (name === "onHeartbeat") this.heartbeat = first;
    if (name === "onError") this.error = first;
    if (name === "onContent") this.#queue?.push({ ...second, data: first });
    if (name === "onReset") this.#queue?.push({ event: "reset", data: first, id: "", reset: true });
    if (name === "onComplete" && first.incomplete) {
      const message = `ended early: ${first.reason}`;
      this.error = new SSEError(first.reason, message, { traceId: this.traceId });
    }
    try {
      this.#options[name]?.(first, second);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  #setTimer() {
    const { deadline } = this.#machine;
    clearTimeout(this.#timer);
    if (deadline === Infinity) return;
    const delay = Math.min(deadline - now(), 2 ** 31 - 1); // a longer delay fires at once
    this.#timer = setTimeout(() => this.#apply(this.#machine.tick(now())), delay);
  }

  get #url() {
    return new URL(this.#options.url, globalThis.document?.baseURI);
  }

  async #fetch(target, { type, ...sent }, request) {
    const { headers, credentials, fetch = globalThis.fetch } = this.#options;
    const all = new Headers(typeof headers === "function" ? await headers() : headers);
    if (type && !all.has("content-type")) all.set("content-type", type);
    for (const [name, value] of Object.entries(sent)) all.set(name, value);
    return fetch(target, { credentials, headers: all, cache: "no-store", ...request });
  }

  async #open(id, signal) {
    const target = this.#url;
    const sent = { accept: "text/event-stream;events=named" }; // no preflight
    // Addresses are logged, but a header needs a preflight across origins. Only pages have an origin.
    const isAcross = ![undefined, target.origin].includes(globalThis.origin);
    if (EVENT_ID.test(id) && isAcross) addParameter(target, `last_event_id=${id}`);
    else if (id) sent["last-event-id"] = id;
    const { body, type } = await (this.#body ??= serialize(this.#options.body));
    if (EVENT_ID.test(id) && new Blob([body ?? ""]).size > MAX_BODY) {
      return this.#fetch(target, sent, { signal }); // a GET, which uploads nothing, resumes too
    }
    const { method } = this.#options;
    return this.#fetch(target, { type, ...sent }, { method, body, signal });
  }

  // With a body of plain text, which needs no preflight.
  #cancel(id) {
    const target = addParameter(this.#url, "sse_cancel");
    const request = { method: "POST", body: id, keepalive: true };
    this.#fetch(target, { "content-type": "text/plain" }, request).catch(() => {});
  }

  async #connect(id) {
    const { signal } = (this.#connection = new AbortController());
    let ended;
    try {
      const response = await this.#open(id, signal);
      if (!signal.aborted) ended = await this.#read(response, id, signal);
    } catch (error) {
      ended = () => this.#machine.ended(now(), { error });
    }
    if (!signal.aborted) this.#apply(ended());
  }

  async #read({ status, headers, body }, id, signal) {
    const machine = this.#machine;
    if (status !== 200 || !/^text\/event-stream\b/i.test(headers.get("content-type"))) {
      const after = headers.get("retry-after");
      const retryAfter = Number(after) * 1000 || Date.parse(after) - Date.now() || 0;
      const traceId = headers.get("x-trace-id") ?? "";
      return () => machine.refused(now(), status, { retryAfter, traceId });
    }
    this.lastMessageTime = Date.now();
    this.#apply(machine.opened(now()));
    const parser = new EventParser(id);
    const reader = body.getReader();
    while (!signal.aborted) {
      const { value, done } = await reader.read();
      if (done || signal.aborted) break;
      const events = parser.feed(value);
      this.lastMessageTime = Date.now();
      machine.received(now(), parser.retry);
      for (const event of events) {
        this.#apply(machine.event(now(), event));
        if (signal.aborted) return;
      }
      machine.id = parser.lastEventId;
      this.#saveId();
      while (this.#queue?.length > 256 && !signal.aborted) {
        machine.deadline = Infinity; // the reader is slow, not the server
        this.#setTimer();
        await new Promise((resolve) => (this.#onRead = resolve));
        if (!signal.aborted) machine.received(now());
      }
      this.#setTimer();
    }
    return () => machine.ended(now(), { clean: true });
  }

  #loadId() {
    const { keep, replay = true } = this.#options;
    try {
      const [savedUrl, id] = JSON.parse(sessionStorage.getItem(keep));
      if (savedUrl !== this.#url.href) return "";
      return replay ? id.replace(EVENT_ID, "$1-0") : id;
    } catch {
      return "";
    }
  }

  #saveId() {
    const { keep } = this.#options;
    const { id } = this.#machine;
    if (!keep) return;
    try {
      if (!id || EVENT_ID.exec(id)?.[3]) sessionStorage.removeItem(keep);
      else sessionStorage.setItem(keep, JSON.stringify([this.#url.href, id]));
    } catch {}
  }
}

// A mistake is an error at once, instead of a request that fails or a callback that is never called.
function checkOptions(options) {
  const fail = (name, value, allowed) => {
    throw new TypeError(`${name} is ${JSON.stringify(value)}, allowed is ${allowed}`);
  };
  if (typeof options !== "object") fail("options", options, 'an object: new SSEClient({ url: "/" })');
  for (const name in options) {
    const value = options[name];
    if (!OPTIONS.includes(name)) {
      throw new TypeError(`no such option: ${name}; there are: ${OPTIONS.join(", ")}`);
    }
    const type = FUNCTIONS.includes(name) ? "function" : NUMBERS.includes(name) && "number";
    if (type && value != null && typeof value !== type) fail(name, value, `a ${type}`);
  }
  const { url, method = "GET", body } = options;
  if (url == null) fail("url", url, "an address, or a path such as /answers");
  if (body == null) return;
  if (method === "GET") fail("method", method, 'one that sends the body: method: "POST"');
  if (Array.isArray(body) || Object.getPrototypeOf(body) === Object.prototype) {
    fail("body", body, "a text, a form or bytes: JSON.stringify(body)");
  }
}

// Monotonic, unlike `Date.now`.
function now() {
  return performance.now();
}

function isAway() {
  return globalThis.navigator?.onLine === false || globalThis.document?.hidden === true;
}

function addParameter(url, parameter) {
  url.search = `?${parameter}${url.search.replace("?", "&")}`;
  return url;
}

// A form gets a new boundary each time that it is serialised, and an object may change meanwhile.
async function serialize(body) {
  if (body == null || typeof body === "string") return { body };
  const response = new Response(body);
  return { body: await response.blob(), type: response.headers.get("content-type") };
}

function parseJSON(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
