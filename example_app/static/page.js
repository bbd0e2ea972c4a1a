// The page of the example app: a question goes out, and the library's client brings the answer.
//
// The server's text is only ever put on the page as text (textContent), never as markup.
import { SSEClient } from "./sse-client.js";
import { Strip } from "./strip.js";

const DEBUG_ROWS = 200;
const TICK_MS = 250;
const SECONDS_CALLED_SHORT = 10;
const STATE_LASTS_MS = 900;
const EARLY_ENDS = {
  duration_cap: "Cut short: the answer has reached its time limit. Ask again with a shorter pause.",
  cancelled: "Cut short: the answer was cancelled.",
};
const OUTCOMES = { complete: "Done", stopped: "Stopped", "cut-short": "Cut short", failed: "Failed" };
const NARROW = matchMedia("(max-width: 36rem)");
const LOSSES = {
  cut: "connection lost",
  ended: "the server has ended the connection",
  silence: "the server has fallen silent",
  shutdown: "the server shuts down",
  refused: "the server is busy",
  producer_lost: "the answering process is gone",
};

const element = (id) => document.getElementById(id);
const strip = new Strip(element("strip"));

/** What the page knows of the question that it asked last. */
let client = null;
let asked = null; // { question, delay }
let endsAt = null;
let waiting = null; // { since, delay, text } of the next attempt
let connections = 0;

// ---------------------------------------------------------------- the connection

function ask(question, delay = element("delay").value) {
  client?.stop();
  forget();
  asked = { question, delay };
  sessionStorage.setItem("asked", JSON.stringify(asked));
  client = follow(asked);
  client.start();
  // On a phone, the connection and the answer fill the screen from now on.
  if (NARROW.matches) document.querySelector(".wire").scrollIntoView({ block: "start" });
}

function follow({ question, delay }) {
  const fields = new URLSearchParams({ query: question, delay_ms: delay });
  const mine = new SSEClient({
    url: `stream/search?${fields}`,
    keep: "answer", // over a reload of the page
    fetch: showingFrames,
    onStateChange: (state, detail) => mine === client && showState(state, detail),
    onStart: begin,
    onReset: clearAnswer,
    onContent: (data, { event }) => takeEvent(event, data),
    onHeartbeat: beat,
    onComplete: end,
    onError: fail,
  });
  return mine;
}

/** Fetch as ever, and show what comes while the client reads it. */
async function showingFrames(url, request) {
  const response = await fetch(url, request);
  if (request.method === "POST" || !response.body) return response;
  const [shown, read] = response.body.tee();
  showFrames(shown).catch(() => log("page", "the connection is gone"));
  return new Response(read, response);
}

async function showFrames(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let chunk; !(chunk = await reader.read()).done; ) {
    const frames = (rest + chunk.value).split(/(?<=\r?\n\r?\n)/);
    rest = /\n\r?\n$/.test(frames.at(-1)) ? "" : frames.pop();
    for (const frame of frames) log(/^event: ?(.*)$/m.exec(frame)?.[1] ?? "message", frame.trimEnd());
  }
  log("page", "the connection has ended");
}

/** Make the server abort the connection, as a tunnel would, without notice to the page. */
async function cut() {
  log("page", "asks the server to cut the connection");
  const response = await fetch(`cut/${client.streamId}`, { method: "POST" });
  if (!response.ok) log("page", "there was nothing to cut");
}

// ---------------------------------------------------------------- incoming events

function begin({ resumed, max_duration: seconds, trace_id: trace, stream_id: stream }) {
  showText("trace-id", trace);
  showText("stream-id", stream);
  element("copy").disabled = false;
  setLimit(seconds, resumed ? undefined : seconds); // the time of the stream, not of the connection
  if (resumed) showText("state-detail", "resumed without a loss");
}

function takeEvent(event, data) {
  if (event === "content_chunk") {
    strip.mark("word");
    appendAnswer(data.content ?? "");
  } else if (event === "complete") {
    showSources(data.sources ?? [], data.confidence_score ?? 0);
  }
}

function beat(data) {
  strip.mark("beat");
  showText("heartbeats", data.heartbeat_count);
  showText("heartbeats-noun", data.heartbeat_count === 1 ? "heartbeat" : "heartbeats");
  showText("uptime", `${Number(data.uptime_seconds).toFixed(1)} s`);
  showText("chunks", data.total_chunks);
  showText("last-beat", new Date(data.timestamp).toLocaleTimeString([], { hour12: false }));
  element("last-beat").title = data.timestamp;
  setLimit(data.max_duration, data.remaining_seconds);
  pulse();
}

function end({ reason, incomplete }) {
  flushAnswer();
  settle(incomplete ? "cut-short" : "complete");
  if (incomplete) showNotice(EARLY_ENDS[reason] ?? `Cut short: ${reason}.`, "Ask again");
  else announce("The answer is complete.");
}

function fail({ code, message, traceId }) {
  flushAnswer();
  settle("failed");
  const trace = traceId ? ` (trace ${traceId})` : "";
  const gaveUp = code === "gave_up";
  const action = client.lastEventId ? "Reconnect" : "Ask again";
  showNotice(gaveUp ? `The server cannot be reached.${trace}` : `${message}${trace}`, action);
}

function settle(state) {
  endsAt = null;
  element("answer").dataset.state = state;
  element("answer").setAttribute("aria-busy", "false");
  showOutcome(state);
}

function showOutcome(state) {
  const outcome = element("outcome");
  outcome.dataset.state = state;
  outcome.textContent = OUTCOMES[state] ?? "";
  outcome.hidden = !(state in OUTCOMES);
}

// ---------------------------------------------------------------- the answer

let unwritten = "";
let unannounced = "";

/** Write a piece of the answer; a mark "[2]" becomes a link, even where two pieces share it. */
function appendAnswer(piece) {
  const answer = element("answer");
  answer.dataset.state = "streaming";
  answer.setAttribute("aria-busy", "true");
  showOutcome("streaming");
  unwritten += piece;
  const begun = unwritten.search(/\[\d*$/);
  const whole = begun < 0 ? unwritten : unwritten.slice(0, begun);
  unwritten = unwritten.slice(whole.length);
  answer.append(...whole.split(/(\[\d+\])/).map(answerPart));
  announceSentences(whole);
}

function answerPart(part) {
  const mark = /^\[(\d+)\]$/.exec(part);
  if (!mark) return part;
  const link = make("a", { className: "cite", href: `#source-${mark[1]}`, textContent: mark[1] });
  link.setAttribute("aria-label", `source ${mark[1]}`);
  return link;
}

function flushAnswer() {
  element("answer").append(unwritten);
  announceSentences(`${unwritten} `, true);
  unwritten = "";
}

/** Hand whole sentences to the live region; words alone would stutter. */
function announceSentences(text, all = false) {
  unannounced += text.replace(/\[\d+\]/g, "");
  const ends = all ? unannounced.length : unannounced.search(/[.!?]["”’)]*\s[^.!?]*$/) + 1;
  if (ends > 0) announce(unannounced.slice(0, ends).trim());
  unannounced = unannounced.slice(Math.max(0, ends));
}

function announce(text) {
  const region = element("spoken");
  if (text) region.append(make("p", { textContent: text }));
  while (region.childElementCount > 20) region.firstElementChild.remove();
}

function clearAnswer() {
  unwritten = unannounced = "";
  element("answer").replaceChildren();
  element("answer").dataset.state = "streaming";
  showOutcome("streaming");
  element("sources").replaceChildren();
  element("evidence").hidden = true;
  showNotice("");
}

function showSources(sources, confidence) {
  element("confidence-meter").value = confidence;
  showText("confidence", `${confidence} %`);
  element("sources").replaceChildren(...sources.map(source));
  element("evidence").hidden = sources.length === 0;
}

function source({ number, document_name: name, excerpt, url }, index) {
  const link = make("a", { textContent: "Read it in the documentation", target: "_blank", rel: "noopener noreferrer" });
  if (/^https?:/i.test(url ?? "")) link.href = url;
  const summary = make("summary");
  summary.append(make("span", { className: "number", textContent: number }), make("span", { textContent: name }));
  const body = make("div");
  body.append(make("p", { textContent: excerpt }), link);
  const details = make("details", { id: `source-${number}`, open: index === 0 });
  details.append(summary, body);
  return details;
}

/** Open the source of a mark, and go there. */
function openSource(event) {
  const cite = event.target.closest(".cite");
  const target = cite && document.querySelector(cite.hash);
  if (!target) return;
  event.preventDefault();
  target.open = true;
  target.querySelector("summary").focus();
  target.scrollIntoView({ block: "nearest" });
}

// ---------------------------------------------------------------- the instruments

let lasting = 0;

function showState(state, { reason, attempt = 0, delay = 0 } = {}) {
  element("light").dataset.state = element("state").dataset.state = state;
  showText("state", state);
  waiting = state === "reconnecting" ? { since: performance.now(), delay } : null;
  showText("state-detail", stateDetail(state, reason, attempt, delay));
  if (waiting) waiting.text = element("state-detail").textContent;
  if (state === "connected") showText("connections", ++connections);
  strip.state(state);
  clearTimeout(lasting); // a short state is not announced
  lasting = setTimeout(() => asked && announce(`${state}: ${element("state-detail").textContent}`), STATE_LASTS_MS);
  const running = state !== "disconnected";
  enable("stop", running, "start");
  enable("cut", state === "connected", "stop");
  enable("start", !running && asked !== null, "stop");
  if (reason === "stopped") {
    flushAnswer();
    settle("stopped");
  }
}

function stateDetail(state, reason, attempt, delay) {
  if (state === "connecting") return "asking";
  if (state === "connected") return "the answer is on its way";
  if (state === "reconnecting") {
    const seconds = (delay / 1000).toFixed(1);
    const again = attempt > 1 ? `, attempt ${attempt}` : "";
    return `${LOSSES[reason] ?? reason}; back in ${seconds} s${again}`;
  }
  if (reason === "finished") return "the answer is complete";
  return reason === "stopped" ? "stopped by you" : `ended: ${reason}`;
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

/** Count down to the next attempt. */
function showWaiting() {
  if (waiting === null) return;
  const left = Math.max(0, waiting.delay - (performance.now() - waiting.since));
  showText("state-detail", waiting.text.replace(/back in [\d.]+ s/, `back in ${(left / 1000).toFixed(1)} s`));
}

function setLimit(maxSeconds, remainingSeconds) {
  const bar = element("remaining-bar");
  bar.max = maxSeconds ?? 1;
  if (maxSeconds === null) {
    endsAt = null;
    bar.value = 1;
    showText("remaining", "no limit");
  } else if (remainingSeconds !== undefined) {
    endsAt = performance.now() + remainingSeconds * 1000;
    showRemaining();
  }
}

function showRemaining() {
  if (endsAt === null) return;
  const bar = element("remaining-bar");
  const seconds = Math.max(0, (endsAt - performance.now()) / 1000);
  bar.value = seconds;
  bar.classList.toggle("short", seconds < SECONDS_CALLED_SHORT);
  showText("remaining", `${seconds.toFixed(0)} of ${bar.max} s`);
}

function pulse() {
  const line = element("pulse");
  line.classList.add("alive");
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    line.animate([{ transform: "scale(1.25)" }, { transform: "scale(1)" }], { duration: 500, easing: "ease-out" });
  }
}

async function copyTrace() {
  await navigator.clipboard.writeText(element("trace-id").textContent);
  showText("copy", "Copied");
  announce("Trace id copied");
  setTimeout(() => showText("copy", "Copy"), 1500);
}

/** Forget all that was shown of the last question. */
function forget() {
  document.body.classList.add("asked");
  clearAnswer();
  for (const id of ["trace-id", "stream-id", "uptime", "chunks", "last-beat", "remaining"]) {
    showText(id, null);
  }
  for (const id of ["heartbeats", "connections"]) showText(id, 0);
  element("copy").disabled = true;
  element("pulse").classList.remove("alive");
  element("remaining-bar").value = 0;
  endsAt = null;
  connections = 0;
}

function log(name, text) {
  const list = element("debug");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const now = new Date().toISOString();
  const row = make("li", { className: name.replace(/[^\w-]/g, "") });
  row.append(make("time", { dateTime: now, textContent: now.slice(11, 23) }), make("pre", { textContent: text }));
  list.append(row);
  while (list.childElementCount > DEBUG_ROWS) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

// ---------------------------------------------------------------- small things

function make(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

function showText(id, text) {
  element(id).textContent = text ?? "–";
}

function showNotice(text, action = "Ask again") {
  showText("notice", text);
  showText("retry", action);
  element("notice-box").hidden = !text;
}

// ---------------------------------------------------------------- the controls

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = element("query").value.trim();
  if (question) ask(question);
});
for (const button of document.querySelectorAll("[data-question]")) {
  button.addEventListener("click", () => {
    element("query").value = button.textContent;
    ask(button.textContent);
  });
}
element("stop").addEventListener("click", () => client.stop());
element("start").addEventListener("click", () => ask(asked.question));
element("retry").addEventListener("click", () => {
  showNotice("");
  if (client.lastEventId) client.start(); // continues at its position
  else ask(asked.question);
});
element("cut").addEventListener("click", cut);
element("copy").addEventListener("click", copyTrace);
element("answer").addEventListener("click", openSource);
element("clear").addEventListener("click", () => element("debug").replaceChildren());
element("hide-words").addEventListener("change", (event) => {
  element("debug").classList.toggle("without-words", event.target.checked);
});
element("delay").addEventListener("input", (event) => showText("delay-text", `${event.target.value} ms`));
setInterval(() => {
  showRemaining();
  showWaiting();
}, TICK_MS);
strip.draw();

// A reloaded page continues its stream; a link may carry the question: /?query=What+is+a+generator
const before = JSON.parse(sessionStorage.getItem("asked") ?? "null");
const linked = new URLSearchParams(location.search).get("query")?.trim();
if (before && (!linked || linked === before.question) && follow(before).lastEventId) {
  element("query").value = before.question;
  asked = before;
  client = follow(before);
  client.start();
} else if (linked) {
  element("query").value = linked;
  ask(linked);
}
