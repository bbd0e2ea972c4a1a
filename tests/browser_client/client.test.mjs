// SSEClient against a real node server: its requests, its callbacks and its iterator.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { SSEClient } from "../../sse_middleware/client/sse-client.js";

const SECRET = "gbIM0uFqHGZdYXNM4YkE9w";
const STREAM = '"stream_id": "s", "trace_id": "t"';
const START = `event: start\ndata: {${STREAM}, "resumed": false}\nid: ${SECRET}-0\nretry: 10\n\n`;
const end = (reason) => `event: complete\ndata: {${STREAM}, "reason": "${reason}"}\n\n`;
const word = (seq) => `data: {"word": ${seq}}\nid: ${SECRET}-${seq}\n\n`;

let server;
let responses;
let requests;

before(async () => {
  server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      requests.push({ method: request.method, url: request.url, headers: request.headers, body });
      const respondNext = responses.shift() ?? notFound;
      respondNext(response);
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
});
after(() => {
  server.closeAllConnections();
  server.close();
});

const notFound = (response) => response.writeHead(404).end();
const noContent = (response) => response.writeHead(204).end();
const stream = (response) => response.writeHead(200, { "content-type": "text/event-stream" });
const respond = (...parts) => (response) => stream(response).end(parts.join(""));
const respondAndCut = (...parts) => (response) =>
  stream(response).write(parts.join(""), () => setTimeout(() => response.destroy(), 20));

function client(nextResponses, options) {
  [responses, requests] = [nextResponses, []];
  return new SSEClient({ url: `http://127.0.0.1:${server.address().port}/answers?a=1`, ...options });
}

async function waitForRequests(count) {
  while (requests.length < count) await new Promise((resolve) => setTimeout(resolve, 5));
}

async function readAll(sse) {
  const items = [];
  for await (const item of sse) items.push(item.reset ? "reset" : item.data.word);
  return items;
}

test("the iterator returns each event once, across cuts, and then ends", async () => {
  const sse = client([
    respondAndCut(START, word(1), word(2)),
    respondAndCut(START.replace("false", "true").replace("-0", "-2"), word(3)),
    respond(word(4), end("finished")),
  ]);
  assert.deepEqual(await readAll(sse), [1, 2, 3, "reset", 4]);
  assert.deepEqual(
    requests.map(({ headers }) => headers["last-event-id"]),
    [undefined, `${SECRET}-2`, `${SECRET}-3`],
  );
  for (const { url } of requests) assert.equal(url, "/answers?a=1");
  for (const { headers } of requests) assert.equal(headers.accept, "text/event-stream;events=named");
  assert.equal(sse.state, "disconnected");
});

test("data of any JSON type is content, under any event type", async () => {
  const values = [null, true, 0, -1.5, "", "null", [], [null], {}, { a: null }];
  // Fields of control events that are not in a control event.
  values.push({ incomplete: true, reason: "duration_cap" }, { error: null }, { error: { code: null } });
  values.push({ stream_id: null, trace_id: null }, { stream_id: "s" }, { length: 9, status: 500 });
  const types = ["message", "start", "heartbeat", "complete", "error", "reset", "constructor"];
  const sent = types.flatMap((type) => values.map((value) => [type, value]));
  const lines = sent.map(([type, value]) => `event: ${type}\ndata: ${JSON.stringify(value)}\n\n`);
  for (const opening of [START, ""]) {
    const received = [];
    const closing = opening && end("finished");
    const sse = client([respond(opening, ...lines, word(1), closing)], { maxReconnectAttempts: 0 });
    for await (const { event, data } of sse) received.push([event, data]);
    assert.deepEqual(received, [...sent, ["message", { word: 1 }]]);
    assert.equal(sse.error, undefined);
  }
});

test("the iterator throws if the stream ends early or fails", async () => {
  await assert.rejects(readAll(client([respond(START, word(1), end("duration_cap"))])), {
    name: "SSEError",
    code: "duration_cap",
    traceId: "t",
  });
  await assert.rejects(readAll(client([])), { code: "http", status: 404 });
});

test("a break out of the iterator stops the stream, also on the server", async () => {
  const headers = { "content-type": "application/json", "x-own": "1" };
  const sse = client([respondAndCut(START, word(1), word(2)), noContent], { headers });
  for await (const { data } of sse) if (data.word === 2) break;
  assert.equal(sse.state, "disconnected");
  await waitForRequests(2);
  const { method, url, body, headers: sent } = requests[1];
  assert.deepEqual([method, url, body], ["POST", "/answers?sse_cancel&a=1", `${SECRET}-2`]);
  assert.deepEqual([sent["content-type"], sent["x-own"]], ["text/plain", "1"]);
});

test("a slow reader of the iterator slows the server down, without a silence timeout", async () => {
  let written = 0;
  const sse = client(
    [
      (response) => {
        stream(response).write(START);
        const pad = "x".repeat(1000);
        const writeAll = () => {
          while (written < 20_000) {
            if (!response.write(`data: {"word": ${++written}, "pad": "${pad}"}\n\n`)) {
              return response.once("drain", writeAll);
            }
          }
          response.end(end("finished"));
        };
        writeAll();
      },
    ],
    { silenceThreshold: 1 },
  );
  let read = 0;
  for await (const { data } of sse) {
    assert.equal(data.word, ++read);
    if (read === 1) {
      await new Promise((resolve) => setTimeout(resolve, 1500));
      assert.ok(written < 20_000, "the client does not read ahead without limit");
    }
  }
  assert.equal(read, 20_000);
  assert.equal(requests.length, 1);
});

test("the headers function is called for each connection, and the body is sent each time", async () => {
  let number = 0;
  const sse = client([respondAndCut(START, word(1)), respond(START, end("finished"))], {
    method: "POST",
    body: '{"q": 1}',
    headers: async () => ({ authorization: `Bearer ${++number}`, "content-type": "application/json" }),
  });
  await readAll(sse);
  assert.deepEqual(
    requests.map(({ method, body, headers }) => [method, body, headers.authorization]),
    [
      ["POST", '{"q": 1}', "Bearer 1"],
      ["POST", '{"q": 1}', "Bearer 2"],
    ],
  );
});

const FORM = new FormData();
FORM.set("question", "?");
FORM.set("file", new Blob(["\0\r\n\xff"]), "a.bin");
const BODIES = {
  string: "text",
  FormData: FORM,
  URLSearchParams: new URLSearchParams({ q: "a b" }),
  Blob: new Blob(["\0\xff"], { type: "Text/X;Charset=A" }),
  "Blob without a type": new Blob(["\0"]),
  ArrayBuffer: new Uint8Array([0, 255]).buffer,
  "typed array": new Uint8Array([0, 255, 10]),
  stream: new Blob(["part"]).stream(),
};

for (const [kind, body] of Object.entries(BODIES)) {
  test(`a ${kind} is sent again with the same bytes and type`, async () => {
    const fresh = START.replace(`id: ${SECRET}-0\n`, "");
    const responses = [respondAndCut(fresh), respondAndCut(START, word(1)), respond(word(2), end("finished"))];
    const sse = client(responses, { method: "POST", body });
    assert.deepEqual(await readAll(sse), [1, "reset", 2]);
    const sent = requests.map(({ headers, body }) => [headers["content-type"], body]);
    assert.equal(new Set(sent.map(String)).size, 1);
    assert.ok(sent.length === 3 && sent[0][1].length > 0);
    if (kind === "stream") {
      responses.push(respond(START, end("finished")));
      assert.deepEqual(await readAll(sse), ["reset"]);
      assert.equal(requests[3].body, sent[0][1], "a new run has the same body");
      return;
    }
    const direct = new Response(body);
    if (kind !== "FormData") assert.deepEqual(sent[0], [direct.headers.get("content-type") ?? undefined, await direct.text()]);
    else assert.ok(sent[0][1].includes(sent[0][0].split("boundary=")[1]), "the type has the boundary of the body");
  });
}

test("a body over one mebibyte is not sent again to a stream that resumes", async () => {
  const long = "\u00e9".repeat(600_000); // 1.2 MB in UTF-8
  for (const body of [long, new Blob([long])]) {
    const fresh = START.replace(`id: ${SECRET}-0\n`, "");
    const responses = [respondAndCut(fresh), respondAndCut(START, word(1)), respond(word(2), end("finished"))];
    await readAll(client(responses, { method: "POST", body, headers: { "x-own": "1" } }));
    assert.deepEqual(
      requests.map(({ method, body, headers }) => [method, body.length > 0, headers["x-own"]]),
      [["POST", true, "1"], ["POST", true, "1"], ["GET", false, "1"]],
    );
  }
});

test("a form that has changed is sent as it was if the stream resumes, and else as it is", async () => {
  const body = new FormData();
  body.set("n", "first");
  const responses = [respondAndCut(START, word(1)), respondAndCut(START, word(2))];
  responses.push(noContent, respond(START, end("finished")));
  const sse = client(responses, { method: "POST", body, maxReconnectAttempts: 0 });
  await assert.rejects(readAll(sse), { code: "gave_up" });
  body.set("n", "second");
  await assert.rejects(readAll(sse), { code: "gave_up" });
  assert.equal(requests[1].body, requests[0].body);
  sse.stop();
  await waitForRequests(3);
  await readAll(sse);
  assert.match(requests[3].body, /second/);
});

test("the headers of the page decide on the type of a body", async () => {
  const sse = client([respond(START, end("finished"))], {
    method: "POST",
    body: new URLSearchParams({ q: "a" }),
    headers: { "content-type": "application/x-own" },
  });
  await readAll(sse);
  assert.equal(requests[0].headers["content-type"], "application/x-own");
});

test("a clock that is set back or forward delays nothing and cuts nothing", async (context) => {
  const realNow = Date.now;
  context.after(() => (Date.now = realNow));
  const stall = (response) => stream(response).write([START, word(1)].join(""));
  for (const shift of [-3_600_000, 3_600_000]) {
    Date.now = realNow;
    const sse = client([stall, respond(START.replace("false", "true"), word(2), end("finished"))], {
      silenceThreshold: 0.3,
      onContent: () => (Date.now = () => realNow() + shift),
    });
    assert.deepEqual(await readAll(sse), [1, 2]);
    assert.equal(requests.length, 2);
  }
});

test("keep resumes the same address, whether it is a URL or a text", async (context) => {
  const stored = new Map();
  globalThis.sessionStorage = {
    getItem: (key) => stored.get(key) ?? null,
    setItem: (key, value) => stored.set(key, String(value)),
    removeItem: (key) => stored.delete(key),
  };
  context.after(() => delete globalThis.sessionStorage);
  const base = `http://127.0.0.1:${server.address().port}`;
  const text = `${base}/answers?a=1`;
  for (const [before, after] of [[text, new URL(text)], [new URL(text), new URL(text)], [new URL(text), text]]) {
    stored.clear();
    const first = client([respondAndCut(START, word(1))], { url: before, keep: "k", maxReconnectAttempts: 0 });
    await assert.rejects(readAll(first));
    assert.equal(client([], { url: after, keep: "k" }).lastEventId, `${SECRET}-0`);
    assert.equal(client([], { url: after, keep: "k", replay: false }).lastEventId, `${SECRET}-1`);
    assert.equal(client([], { url: `${base}/answers?a=2`, keep: "k" }).lastEventId, "");
  }
});

test("after status 503 the client waits for Retry-After", async () => {
  const busy = (response) => response.writeHead(503, { "retry-after": "1" }).end();
  const sse = client([busy, respond(START, word(1), end("finished"))], { reconnectDelay: 1 });
  const started = performance.now();
  assert.deepEqual(await readAll(sse), [1]);
  assert.ok(performance.now() - started >= 990);
});

test("an event id is in the query only if the stream has another origin than the page", async (context) => {
  context.after(() => delete globalThis.origin);
  for (const isOwn of [true, false]) {
    const sse = client([respondAndCut(START, word(1)), respond(word(2), end("finished"))]);
    globalThis.origin = isOwn ? `http://127.0.0.1:${server.address().port}` : "http://page.test";
    await readAll(sse);
    const { url, headers } = requests[1];
    const [query, header] = isOwn ? ["", `${SECRET}-1`] : [`last_event_id=${SECRET}-1&`, undefined];
    assert.deepEqual([url, headers["last-event-id"]], [`/answers?${query}a=1`, header]);
  }
});

test("an event id of the app is sent in the Last-Event-ID header", async () => {
  const sse = client([
    respondAndCut(START, 'id: 7\ndata: {"word": 1}\n\n'),
    respond('id: 8\ndata: {"word": 2}\n\n'),
  ]);
  assert.deepEqual(await readAll(sse), [1, 2]);
  assert.equal(requests[1].headers["last-event-id"], "7");
  assert.equal(requests[1].url, "/answers?a=1");
});

test("an error in a callback is reported as uncaught, and no event is lost", async (context) => {
  const thrown = [];
  const listeners = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", (error) => thrown.push(error.message));
  context.after(() => {
    process.removeAllListeners("uncaughtException");
    for (const listener of listeners) process.on("uncaughtException", listener);
  });
  const words = [];
  await new Promise((resolve) =>
    client([respond(START, word(1), word(2), end("finished"))], {
      onContent: ({ word: seq }) => {
        words.push(seq);
        throw new Error(`at ${seq}`);
      },
      onComplete: resolve,
    }).start(),
  );
  assert.deepEqual(words, [1, 2]);
  assert.deepEqual(thrown, ["at 1", "at 2"]);
});

test("after a callback calls stop, no further callback is called", async () => {
  const calls = [];
  const sse = client([respond(START, word(1), word(2), end("finished"))], {
    onContent: ({ word: seq }) => {
      calls.push(seq);
      sse.stop();
    },
    onComplete: () => calls.push("complete"),
  });
  sse.start();
  await waitForRequests(2); // the second one cancels the stream on the server
  assert.deepEqual(calls, [1]);
});

test("onComplete may call start", async () => {
  const calls = [];
  await new Promise((resolve) => {
    const sse = client(
      [respond(START, word(1), end("finished")), respond(START, word(1), end("finished"))],
      {
        onContent: ({ word: seq }) => calls.push(seq),
        onStateChange: (state) => calls.push(state),
        onComplete: () => (calls.includes("second") ? resolve() : calls.push("second") && sse.start()),
      },
    );
    sse.start();
  });
  assert.deepEqual(calls, [
    ...["connecting", "connected", 1, "second"], // without the "disconnected" of the first run
    ...["connecting", "connected", 1, "disconnected"],
  ]);
});

test("stop in onComplete has no effect, and the end is still reported", async () => {
  const calls = [];
  await new Promise((resolve) => {
    const sse = client([respond(START, word(1), end("finished"))], {
      onComplete: () => sse.stop(),
      onStateChange: (state) => calls.push(state) && state === "disconnected" && resolve(),
    });
    sse.start();
  });
  assert.deepEqual(calls, ["connecting", "connected", "disconnected"]);
});

test("the error that prevented the last connection is the cause of gave_up", async () => {
  const headers = () => Promise.reject(new Error("no token"));
  const sse = client([], { headers, maxReconnectAttempts: 0 });
  await assert.rejects(readAll(sse), ({ code, cause, message }) => {
    assert.equal(code, "gave_up");
    assert.equal(cause.message, "no token");
    return message === "gave up: no token";
  });
});
