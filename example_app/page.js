// The page of the example app: a question goes out, an EventSource brings the answer.
//
// The server's text is only ever put on the page as text (textContent), never as markup.
"use strict";

const DEBUG_ROWS = 200;
const CUT_SECONDS = 2;
const TICK_MS = 250;
const SECONDS_CALLED_SHORT = 10;
const ON_ITS_WAY = "the answer is on its way";
const COMPLETE_REASONS = {
  duration_cap: "Cut short: the stream reached its time limit. Ask again with a shorter pause.",
  shutdown: "Cut short: the server is shutting down.",
  cancelled: "Cut short: the answer was cancelled.",
};

const element = (id) => document.getElementById(id);

/** What the page knows about the question that it asked last. */
const asked = { question: "", delay: "0", cursor: "", finished: true };

/** What the page knows about the connection that it holds. */
const wire = {
  source: null,
  returnTimer: 0,
  // An open connection has not said yet whether it goes on with the answer or begins it.
  mayBeginAgain: false,
  lastSign: 0,
  silenceSeconds: null,
  maxSeconds: null,
  endsAt: null,
};

// ---------------------------------------------------------------- the connection

function ask(question) {
  Object.assign(asked, { question, delay: element("delay").value, cursor: "", finished: false });
  clearAnswer();
  clearFacts();
  open();
}

/** Open the stream; with a cursor it goes on where that cursor stands. */
function open() {
  close();
  const url = new URL("stream/search", document.baseURI);
  url.searchParams.set("query", asked.question);
  url.searchParams.set("delay_ms", asked.delay);
  if (asked.cursor) {
    url.searchParams.set("last_event_id", asked.cursor);
  }
  const source = new EventSource(url);
  wire.source = source;
  wire.lastSign = performance.now();
  for (const [name, handle] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => receive(source, name, handle, event));
  }
  source.addEventListener("open", () => opened(source));
  log("page", asked.cursor ? "opens, with its cursor" : "opens");
  showState(asked.cursor ? "reconnecting" : "connecting", "");
}

function close() {
  clearTimeout(wire.returnTimer);
  wire.source?.close();
  wire.source = null;
}

function opened(source) {
  if (source !== wire.source) {
    return;
  }
  wire.mayBeginAgain = true;
  log("page", "connected");
  showState("connected", ON_ITS_WAY);
}

function receive(source, name, handle, event) {
  if (source !== wire.source) {
    return;
  }
  // EventSource reports a lost connection as an event named "error", as a server may name one of
  // its own; only the server's carries data.
  if (name === "error" && typeof event.data !== "string") {
    lost(source);
    return;
  }
  wire.lastSign = performance.now();
  asked.cursor = event.lastEventId || asked.cursor;
  log(name, event.data, event.lastEventId);
  handle(parse(event.data));
}

function lost(source) {
  if (source.readyState === EventSource.CLOSED) {
    log("page", "the server refused the stream");
    end("failed", "the server refused the stream");
    showNotice("The server refused the stream. Is it still running?");
    return;
  }
  log("page", "connection lost; the browser tries again");
  showState("reconnecting", "connection lost, trying again");
}

/** Drop the connection without a word, as a tunnel would, and come back with the cursor. */
function cut() {
  close();
  log("page", `connection cut; back in ${CUT_SECONDS} s`);
  showState("reconnecting", `cut by you, back in ${CUT_SECONDS} seconds`);
  wire.returnTimer = setTimeout(open, CUT_SECONDS * 1000);
}

function stop() {
  close();
  log("page", "stopped");
  showState("disconnected", "stopped by you");
  element("answer").dataset.state = "cut-short";
  element("answer").setAttribute("aria-busy", "false");
  wire.endsAt = null;
}

/** Leave for good: the answer is whole, or will not become so. */
function end(answerState, detail) {
  flushAnswer();
  close();
  asked.finished = true;
  wire.endsAt = null;
  element("answer").dataset.state = answerState;
  element("answer").setAttribute("aria-busy", "false");
  showState("disconnected", detail);
}

// ---------------------------------------------------------------- the events

const handlers = {
  start(data) {
    begin(data);
    if (data.resumed) {
      showState("connected", "resumed where it was cut; nothing was lost");
    } else {
      clearAnswer();
    }
  },

  reset(data) {
    begin(data);
    clearAnswer();
    showState("connected", "the server had lost its place, the answer begins again");
  },

  content_chunk(data) {
    // Only a server without control events gets here; it answers from the start again.
    if (wire.mayBeginAgain) {
      wire.mayBeginAgain = false;
      clearAnswer();
    }
    appendAnswer(data.content ?? "");
  },

  heartbeat(data) {
    showHeartbeats(data.heartbeat_count);
    showText("uptime", `${Number(data.uptime_seconds).toFixed(1)} s`);
    showText("chunks", data.total_chunks);
    showText("last-beat", new Date(data.timestamp).toLocaleTimeString());
    element("last-beat").title = data.timestamp;
    setLimit(data.max_duration, data.remaining_seconds);
    pulse();
  },

  complete(data) {
    if (data.sources) {
      showSources(data.sources, data.confidence_score);
      end("complete", `answer complete, ${count(data.sources.length, "source")}`);
      return;
    }
    const reason = COMPLETE_REASONS[data.reason];
    end(reason ? "cut-short" : "complete", reason ? `ended: ${data.reason}` : "answer complete");
    showNotice(reason);
  },

  error(data) {
    const { code = "unknown", message = "The server could not finish the answer." } = data.error ?? {};
    showNotice(`${message} (${code}, trace ${data.trace_id ?? "unknown"})`);
    if (code === "producer_lost") {
      // Whoever wrote this answer is gone; the server asks to be asked again.
      showState("reconnecting", "the answering process is gone, trying again");
      return;
    }
    end("failed", "ended by an error");
  },
};

function begin(data) {
  wire.mayBeginAgain = false;
  wire.silenceSeconds = data.silence_threshold ?? null;
  showText("trace-id", data.trace_id);
  showText("stream-id", data.stream_id);
  setLimit(data.max_duration, data.max_duration);
  showNotice("");
}

function parse(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

// ---------------------------------------------------------------- the answer

let unwritten = "";

/** Write a piece of the answer; a mark "[2]" becomes a link, even where two pieces share it. */
function appendAnswer(piece) {
  const answer = element("answer");
  answer.dataset.state = "streaming";
  answer.setAttribute("aria-busy", "true");
  unwritten += piece;
  const begun = unwritten.search(/\[\d*$/);
  const whole = begun < 0 ? unwritten : unwritten.slice(0, begun);
  unwritten = unwritten.slice(whole.length);
  answer.append(...whole.split(/(\[\d+\])/).map(answerPart));
}

function answerPart(part) {
  const mark = /^\[(\d+)\]$/.exec(part);
  return mark ? make("a", { className: "cite", href: `#source-${mark[1]}`, textContent: part }) : part;
}

function flushAnswer() {
  element("answer").append(unwritten);
  unwritten = "";
}

function clearAnswer() {
  unwritten = "";
  element("answer").replaceChildren();
  element("answer").dataset.state = asked.finished ? "empty" : "streaming";
  element("sources").replaceChildren();
  element("evidence").hidden = true;
  showNotice("");
}

function showSources(sources, confidence) {
  const percent = `${Math.round((confidence ?? 0) * 100)} %`;
  element("confidence-meter").value = confidence ?? 0;
  showText("confidence", percent);
  element("sources").replaceChildren(...sources.map(sourceItem));
  element("evidence").hidden = sources.length === 0;
}

function sourceItem({ number, document_name: name, excerpt, url }) {
  const title = make("a", { textContent: name, target: "_blank", rel: "noopener noreferrer" });
  if (/^https?:/i.test(url ?? "")) {
    title.href = url;
  }
  const body = make("div");
  body.append(title, make("p", { textContent: excerpt }));
  const item = make("li", { id: `source-${number}` });
  item.append(make("span", { className: "number", textContent: `[${number}]` }), body);
  return item;
}

// ---------------------------------------------------------------- the instruments

function showState(state, detail) {
  const label = element("state");
  label.dataset.state = state;
  label.textContent = state;
  element("state-detail").textContent = detail;
  label.parentElement.classList.remove("silent");
  for (const light of document.querySelectorAll("[data-light]")) {
    light.classList.toggle("lit", light.dataset.light === state);
  }
  const running = state !== "disconnected";
  enable("stop", running, "start");
  enable("cut", state === "connected", "stop");
  enable("start", !running && asked.question !== "", "stop");
  showText("start", asked.finished ? "Ask again" : "Go on");
}

/** Enable or disable a button; the keyboard focus moves on rather than getting lost. */
function enable(id, enabled, next) {
  const button = element(id);
  const focused = document.activeElement === button;
  button.disabled = !enabled;
  if (focused && !enabled) {
    element(next).disabled = false;
    element(next).focus();
  }
}

function showHeartbeats(number) {
  showText("heartbeats", number);
  showText("heartbeats-noun", number === 1 ? "heartbeat" : "heartbeats");
}

function setLimit(maxSeconds, remainingSeconds) {
  wire.maxSeconds = maxSeconds ?? null;
  wire.endsAt = remainingSeconds == null ? null : performance.now() + remainingSeconds * 1000;
  showRemaining();
  if (wire.maxSeconds === null) {
    showText("remaining", "no limit");
    element("remaining-bar").value = 1;
  }
}

function showRemaining() {
  if (wire.endsAt === null || wire.maxSeconds === null) {
    return;
  }
  const seconds = Math.max(0, (wire.endsAt - performance.now()) / 1000);
  const bar = element("remaining-bar");
  bar.max = wire.maxSeconds;
  bar.value = seconds;
  bar.classList.toggle("short", seconds < SECONDS_CALLED_SHORT);
  showText("remaining", `${seconds.toFixed(0)} of ${wire.maxSeconds} s`);
}

/** Say it once when the server has been silent for longer than it promised, and once it speaks. */
function watchSilence() {
  const line = element("state").parentElement;
  const connected = wire.source?.readyState === EventSource.OPEN;
  const silentSeconds = (performance.now() - wire.lastSign) / 1000;
  const silent = connected && wire.silenceSeconds !== null && silentSeconds > wire.silenceSeconds;
  if (silent !== line.classList.contains("silent") && connected) {
    line.classList.toggle("silent", silent);
    showText("state-detail", silent ? `no sign of life for ${wire.silenceSeconds} seconds` : ON_ITS_WAY);
  }
}

function pulse() {
  const line = element("pulse");
  line.classList.add("alive");
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    line.animate(
      [{ transform: "scale(1.25)", opacity: 1 }, { transform: "scale(1)", opacity: 0.75 }],
      { duration: 700, easing: "ease-out" },
    );
  }
}

function clearFacts() {
  for (const id of ["trace-id", "stream-id", "uptime", "chunks", "last-beat", "remaining"]) {
    showText(id, null);
  }
  showHeartbeats(0);
  element("pulse").classList.remove("alive");
  element("remaining-bar").value = 0;
  Object.assign(wire, { silenceSeconds: null, maxSeconds: null, endsAt: null });
}

function log(name, data, id) {
  const list = element("debug");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const now = new Date();
  const row = make("li", { className: name });
  const time = make("time", { dateTime: now.toISOString(), textContent: now.toISOString().slice(11, 23) });
  const body = make("span", { textContent: data ?? "" });
  if (id) {
    body.append(make("small", { textContent: `id: ${id}` }));
  }
  row.append(time, make("b", { textContent: name }), body);
  list.append(row);
  while (list.childElementCount > DEBUG_ROWS) {
    list.firstElementChild.remove();
  }
  if (atEnd) {
    list.scrollTop = list.scrollHeight;
  }
}

// ---------------------------------------------------------------- small things

function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

function showText(id, text) {
  element(id).textContent = text ?? "–";
}

function showNotice(text) {
  element("notice").textContent = text ?? "";
  element("notice").hidden = !text;
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// ---------------------------------------------------------------- the controls

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = element("query").value.trim();
  if (question) {
    ask(question);
  }
});
for (const button of document.querySelectorAll("[data-question]")) {
  button.addEventListener("click", () => {
    element("query").value = button.textContent;
    ask(button.textContent);
  });
}
element("stop").addEventListener("click", stop);
element("cut").addEventListener("click", cut);
element("start").addEventListener("click", () => (asked.finished ? ask(asked.question) : open()));
element("clear").addEventListener("click", () => element("debug").replaceChildren());
element("hide-words").addEventListener("change", (event) => {
  element("debug").classList.toggle("without-words", event.target.checked);
});
element("delay").addEventListener("input", (event) => {
  showText("delay-text", `${event.target.value} ms`);
});
setInterval(() => {
  showRemaining();
  watchSilence();
}, TICK_MS);

showState("disconnected", "nothing asked yet");
// A link may carry the question: /?query=What+is+a+generator
const linked = new URLSearchParams(location.search).get("query")?.trim();
if (linked) {
  element("query").value = linked;
  ask(linked);
}
