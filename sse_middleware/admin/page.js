// The live page. All text from the server is set as text, never as markup.
import { SSEClient } from "./sse-client.js";

const address = (name, query = "") => new URL(name + query, import.meta.url);
const element = (id) => document.getElementById(id);
const KEY = "sse-admin-token";
const GOOD = new Set(["open", "resumed", "read by others", "finished"]);
const BAD = new Set(["error", "incomplete", "aborted"]);
const MAX_FRAME_CHARACTERS = 200_000;
let token = sessionStorage.getItem(KEY) ?? "";
let live;
let payloads = false;

const headers = () => ({ authorization: `Bearer ${token}` });
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();

function make(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function stateCell(state) {
  return make("td", state, GOOD.has(state) ? "good" : BAD.has(state) ? "bad" : "warn");
}

function idCell(row) {
  const cell = make("td", row.stream_id.slice(0, 8), "id");
  cell.title = `stream ${row.stream_id}, trace ${row.trace_id}`;
  return cell;
}

const NUMBERS = [["age", (row) => `${row.age.toFixed(1)} s`], ["events", (row) => row.events], ["tokens", (row) => row.tokens], ["bytes", (row) => row.bytes.toLocaleString()]];

function table(id, names, rows, cells) {
  const head = make("tr");
  for (const name of names) head.append(make("th", name));
  for (const [name] of NUMBERS) head.append(make("th", name, "number"));
  if (id === "open") head.append(make("th", "connections", "number"), make("th", "actions"));
  const lines = rows.map((row) => {
    const line = make("tr");
    line.append(...cells(row));
    for (const [, value] of NUMBERS) line.append(make("td", value(row), "number"));
    if (id === "open") line.append(make("td", row.connections, "number"), actions(row));
    return line;
  });
  if (!lines.length) {
    const line = make("tr");
    line.append(make("td", "none", "none"));
    lines.push(line);
  }
  element(id).replaceChildren(head, ...lines);
}

function actions(row) {
  const cell = make("td");
  if (row.route === "sse-admin") return cell;
  const stop = make("button", "cancel");
  stop.dataset.cancel = row.stream_id;
  cell.append(stop);
  if (payloads) {
    const show = make("button", "frames");
    show.dataset.frames = row.stream_id;
    cell.append(show);
  }
  return cell;
}

function show(data) {
  payloads = data.payloads;
  element("live").hidden = false;
  element("login").hidden = true;
  const totals = [["open", data.open], ["lingering", data.lingering], ["process", data.process]];
  element("totals").replaceChildren(...totals.map(([name, value]) => {
    const total = make("div");
    total.append(make("dt", name), make("dd", value));
    return total;
  }));
  const common = (row) => [make("td", row.route), make("td", row.kind), idCell(row)];
  const focused = document.activeElement?.dataset ?? {};
  table("open", ["state", "route", "client", "stream", "last control event"], data.streams, (row) => [stateCell(row.state), ...common(row), make("td", row.control)]);
  table("ended", ["outcome", "route", "client", "stream", "at"], data.ended, (row) => [stateCell(row.outcome), ...common(row), make("td", clock(row.at))]);
  for (const [name, id] of Object.entries(focused)) {
    document.querySelector(`button[data-${CSS.escape(name)}="${CSS.escape(id)}"]`)?.focus();
  }
  element("activities").replaceChildren(...(data.activities.length ? data.activities.map((one) => {
    const line = make("li");
    line.append(make("time", clock(one.at)), one.text);
    return line;
  }) : [make("li", "none", "none")]));
}

function connect() {
  element("problem").hidden = true;
  live?.stop({ cancel: false });
  live = new SSEClient({
    url: address("events"),
    headers,
    maxReconnectAttempts: Infinity,
    onContent: (data, { event }) => event === "snapshot" && show(data),
    onStateChange: (state) => { element("state").textContent = state; },
    onError: (error) => {
      sessionStorage.removeItem(KEY);
      element("live").hidden = true;
      element("login").hidden = false;
      element("problem").textContent = error.status === 401 ? "The token is wrong." : `The page has failed: ${error.code}`;
      element("problem").hidden = false;
    },
  });
  live.start();
}

async function cancel(stream) {
  const answer = await fetch(address("cancel", `?stream=${stream}`), { method: "POST", headers: headers() });
  element("state").textContent = answer.ok ? "cancelled" : "this stream cannot be cancelled: it is not kept";
}

function follow(stream) {
  const text = element("frames-text");
  text.textContent = "";
  const frames = new SSEClient({
    url: address("frames", `?stream=${stream}`),
    headers,
    onContent: (data) => { text.textContent = (text.textContent + (data.frames ?? "")).slice(-MAX_FRAME_CHARACTERS); },
    onReset: () => { text.textContent = ""; },
  });
  frames.start();
  element("frames").addEventListener("close", () => frames.stop({ cancel: false }), { once: true });
  element("frames").showModal();
}

element("open").addEventListener("click", ({ target }) => {
  if (target.dataset.cancel) cancel(target.dataset.cancel);
  if (target.dataset.frames) follow(target.dataset.frames);
});

element("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = element("token").value.trim();
  sessionStorage.setItem(KEY, token);
  connect();
});

if (token) connect();
