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
    requests.map(({ url }) => url),
    [
      "/answers?a=1",
      `/answers?last_event_id=${SECRET}-2&a=1`,
      `/answers?last_event_id=${SECRET}-3&a=1`,
    ],
  );
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
  const sse = client([respondAndCut(START, word(1), word(2)), noContent]);
  for await (const { data } of sse) if (data.word === 2) break;
  assert.equal(sse.state, "disconnected");
  await waitForRequests(2);
  assert.deepEqual(
    [requests[1].method, requests[1].url],
    ["POST", `/answers?sse_cancel=${SECRET}-2&a=1`],
  );
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
    { silenceThreshold: 1000 },
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

test("after status 503 the client waits for Retry-After", async () => {
  const busy = (response) => response.writeHead(503, { "retry-after": "1" }).end();
  const sse = client([busy, respond(START, word(1), end("finished"))], { reconnectDelay: 1 });
  const started = performance.now();
  assert.deepEqual(await readAll(sse), [1]);
  assert.ok(performance.now() - started >= 990);
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
