// EventParser returns the events of the Python parser for each stream in corpus.json, in any chunks.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { EventParser } from "../../sse_middleware/client/sse-client.js";

const corpus = JSON.parse(readFileSync(new URL("corpus.json", import.meta.url)));
const INCOMPLETE = Buffer.from("data: unfinished");

function read(chunks) {
  const parser = new EventParser();
  const events = chunks.flatMap((chunk) => parser.feed(chunk));
  return {
    events: events.map(({ event, data, id, hasId }) => [event, data, id, hasId]),
    lastEventId: parser.lastEventId,
    retry: parser.retry ?? null,
  };
}

test(`${corpus.length} streams give the same events whole, byte by byte and cut anywhere`, () => {
  for (const { stream, ...expected } of corpus) {
    const bytes = Buffer.from(stream, "base64");
    const check = (chunks, how) => assert.deepEqual(read(chunks), expected, `${bytes} ${how}`);
    const bytewise = Array.from(bytes, (_, at) => bytes.subarray(at, at + 1));
    check([bytes], "whole");
    check(bytewise, "byte by byte");
    for (let at = 0; at <= bytes.length; at++) {
      check([bytes.subarray(0, at), Buffer.alloc(0), bytes.subarray(at)], `cut at ${at}`);
    }
    if (/[\r\n]{2}$/.test(bytes.toString("latin1"))) {
      check([bytes, INCOMPLETE], "with an incomplete event");
    }
  }
});

test("a stream in random chunks gives the same events as in one chunk", () => {
  const bytes = Buffer.concat(corpus.map(({ stream }) => Buffer.from(stream, "base64")));
  const expected = read([bytes]);
  let seed = 8;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  for (let round = 0; round < 50; round++) {
    const chunks = [];
    for (let at = 0; at < bytes.length; ) {
      const size = Math.ceil(random() ** 3 * 60);
      chunks.push(bytes.subarray(at, (at += size)));
    }
    assert.deepEqual(read(chunks), expected);
  }
});

test("the initial last event id holds until the stream sets another", () => {
  const parser = new EventParser("7");
  const [first] = parser.feed(Buffer.from("data: a\n\nid: 8\ndata: b\n\n"));
  assert.deepEqual([first.id, first.hasId, parser.lastEventId], ["7", false, "8"]);
});

test("an event without end raises an error before it fills the memory", () => {
  for (const end of ["", "\n"]) {
    const parser = new EventParser();
    const chunk = Buffer.from(`data: ${"x".repeat(1 << 20)}${end}`);
    assert.throws(() => {
      for (let number = 0; number < 17; number++) parser.feed(chunk);
    }, RangeError);
  }
});

test("a long line in small chunks takes linear time", () => {
  const cpuMicroseconds = (size) => {
    const parser = new EventParser();
    const chunk = Buffer.alloc(64, "x");
    const before = process.cpuUsage();
    for (let number = 0; number < size; number++) parser.feed(chunk);
    const { user, system } = process.cpuUsage(before);
    return user + system;
  };
  cpuMicroseconds(10_000); // compiles the code
  // Eight times as many chunks; quadratic time would be 64 times as much.
  assert.ok(cpuMicroseconds(80_000) < 40 * cpuMicroseconds(10_000) + 50_000);
});
