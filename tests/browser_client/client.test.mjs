// The client on a real server of node's: what it asks for, and what its iterator gives.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { SSEClient } from "../../sse_middleware/client/sse-client.js";

const SECRET = "gbIM0uFqHGZdYXNM4YkE9w";
const SAID = '"stream_id": "s", "trace_id": "t"';
const START = `event: start\ndata: {${SAID}, "resumed": false}\nid: ${SECRET}-0\nretry: 10\n\n`;
const end = (reason) => `event: complete\ndata: {${SAID}, "reason": "${reason}"}\n\n`;
const word = (seq) => `data: {"word": ${seq}}\nid: ${SECRET}-${seq}\n\n`;

let server;
let answers;
let asked;

before(async () => {
  server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => (body += chunk));
    request.on("end", () => {
      asked.push({ method: request.method, url: request.url, headers: request.headers, body });
      const answer = answers.shift() ?? ((gone) => gone.writeHead(404).end());
      answer(response);
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
});
after(() => {
  server.closeAllConnections();
  server.close();
});

const stream = (response) => response.writeHead(200, { "content-type": "text/event-stream" });
const says = (...parts) => (response) => stream(response).end(parts.join(""));
const cutBehind = (...parts) => (response) =>
  stream(response).write(parts.join(""), () => setTimeout(() => response.destroy(), 20));

function client(given, options) {
  [answers, asked] = [given, []];
  return new SSEClient({ url: `http://127.0.0.1:${server.address().port}/answers?a=1`, ...options });
}

async function all(of) {
  const items = [];
  for await (const item of of) items.push(item.reset ? "reset" : item.data.word);
  return items;
}

test("an iterator gives each event once, across cuts, and is then at its end", async () => {
  const of = client([
    cutBehind(START, word(1), word(2)),
    cutBehind(START.replace("false", "true").replace("-0", "-2"), word(3)),
    says(word(4), end("finished")),
  ]);
  assert.deepEqual(await all(of), [1, 2, 3, "reset", 4]);
  assert.deepEqual(
    asked.map(({ url }) => url),
    [
      "/answers?a=1",
      `/answers?last_event_id=${SECRET}-2&a=1`,
      `/answers?last_event_id=${SECRET}-3&a=1`,
    ],
  );
  for (const { headers } of asked) assert.equal(headers.accept, "text/event-stream;events=named");
  assert.equal(of.state, "disconnected");
});

test("an iterator throws where the stream ends before its time, or fails", async () => {
  await assert.rejects(all(client([says(START, word(1), end("duration_cap"))])), {
    name: "SSEError",
    code: "duration_cap",
    traceId: "t",
  });
  await assert.rejects(all(client([])), { code: "http", status: 404 });
});

test("an iterator that is left stops the stream, on the server too", async () => {
  const of = client([cutBehind(START, word(1), word(2)), (response) => response.writeHead(204).end()]);
  for await (const { data } of of) if (data.word === 2) break;
  assert.equal(of.state, "disconnected");
  while (asked.length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(
    [asked[1].method, asked[1].url],
    ["POST", `/answers?sse_cancel=${SECRET}-2&a=1`],
  );
});

test("who takes events slowly is sent them slowly, and silence is then his own", async () => {
  let written = 0;
  const of = client(
    [
      (response) => {
        stream(response).write(START);
        const pad = "x".repeat(1000);
        const go = () => {
          while (written < 20_000) {
            if (!response.write(`data: {"word": ${++written}, "pad": "${pad}"}\n\n`)) {
              return response.once("drain", go);
            }
          }
          response.end(end("finished"));
        };
        go();
      },
    ],
    { silenceThreshold: 1000 },
  );
  let taken = 0;
  for await (const { data } of of) {
    assert.equal(data.word, ++taken);
    if (taken === 1) {
      await new Promise((resolve) => setTimeout(resolve, 1500));
      assert.ok(written < 20_000, "it is held back");
    }
  }
  assert.equal(taken, 20_000);
  assert.equal(asked.length, 1);
});

test("headers are asked for at each connection, and a body is sent each time", async () => {
  let number = 0;
  const of = client([cutBehind(START, word(1)), says(START, end("finished"))], {
    method: "POST",
    body: '{"q": 1}',
    headers: async () => ({ authorization: `Bearer ${++number}`, "content-type": "application/json" }),
  });
  await all(of);
  assert.deepEqual(
    asked.map(({ method, body, headers }) => [method, body, headers.authorization]),
    [
      ["POST", '{"q": 1}', "Bearer 1"],
      ["POST", '{"q": 1}', "Bearer 2"],
    ],
  );
});

test("a server that is busy is asked again when it says", async () => {
  const busy = (response) => response.writeHead(503, { "retry-after": "1" }).end();
  const of = client([busy, says(START, word(1), end("finished"))], { reconnectDelay: 1 });
  const begun = performance.now();
  assert.deepEqual(await all(of), [1]);
  assert.ok(performance.now() - begun >= 990);
});

test("an id of the app's is sent in the header of the specification", async () => {
  const of = client([
    cutBehind(START, 'id: 7\ndata: {"word": 1}\n\n'),
    says('id: 8\ndata: {"word": 2}\n\n'),
  ]);
  assert.deepEqual(await all(of), [1, 2]);
  assert.equal(asked[1].headers["last-event-id"], "7");
  assert.equal(asked[1].url, "/answers?a=1");
});

test("a callback that throws is told to the process and costs no event", async (context) => {
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
    client([says(START, word(1), word(2), end("finished"))], {
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

test("a callback may stop the client, and hears nothing more", async () => {
  const heard = [];
  const of = client([says(START, word(1), word(2), end("finished"))], {
    onContent: ({ word: seq }) => {
      heard.push(seq);
      of.stop();
    },
    onComplete: () => heard.push("complete"),
  });
  of.start();
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.deepEqual(heard, [1]);
});

test("a callback of the end may start anew", async () => {
  const heard = [];
  await new Promise((resolve) => {
    const of = client(
      [says(START, word(1), end("finished")), says(START, word(1), end("finished"))],
      {
        onContent: ({ word: seq }) => heard.push(seq),
        onStateChange: (state) => heard.push(state),
        onComplete: () => (heard.includes("second") ? resolve() : heard.push("second") && of.start()),
      },
    );
    of.start();
  });
  assert.deepEqual(heard, [
    ...["connecting", "connected", 1, "second"], // the state of which is not told any more
    ...["connecting", "connected", 1, "disconnected"],
  ]);
});

test("a callback of the end may stop, which is nothing, and the end is told all the same", async () => {
  const heard = [];
  await new Promise((resolve) => {
    const of = client([says(START, word(1), end("finished"))], {
      onComplete: () => of.stop(),
      onStateChange: (state) => heard.push(state) && state === "disconnected" && resolve(),
    });
    of.start();
  });
  assert.deepEqual(heard, ["connecting", "connected", "disconnected"]);
});

test("what made a connection impossible is the cause of giving up", async () => {
  const headers = () => Promise.reject(new Error("no token"));
  const of = client([], { headers, maxReconnectAttempts: 0 });
  await assert.rejects(all(of), ({ code, cause, message }) => {
    assert.equal(code, "gave_up");
    assert.equal(cause.message, "no token");
    return message === "gave up: no token";
  });
});
