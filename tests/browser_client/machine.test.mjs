// StreamMachine: inputs with their times go in, effects come out.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { eventId, OTHER, Session, STREAM } from "./session.mjs";

describe("a complete stream", () => {
  test("enters connecting, connected and disconnected", () => {
    const session = new Session();
    assert.deepEqual(session.call("start"), ["connecting", "open"]);
    assert.deepEqual(session.call("opened"), ["connected"]);
    assert.deepEqual(session.receiveStart(), ["onStart"]);
    assert.deepEqual(session.receiveWord(1), ["onContent"]);
    const data = { ...STREAM, reason: "finished" };
    assert.deepEqual(session.receive("complete", data, `${eventId(1)}.end`), [
      "onComplete",
      "close",
      "disconnected",
    ]);
    assert.equal(session.effects[0][1].incomplete, false);
    assert.equal(session.machine.deadline, Infinity);
    assert.equal(session.machine.id, "");
  });

  test("passes parsed data, or the text if it is not JSON", () => {
    const session = new Session();
    session.receiveStart();
    session.receiveWord(1, '{"word": "a"}');
    assert.deepEqual(session.effects[0].slice(1), [
      { word: "a" },
      { event: "message", data: '{"word": "a"}', id: eventId(1), hasId: true },
    ]);
    session.receiveWord(2, "{no json");
    assert.equal(session.effects[0][1], "{no json");
  });

  test("ends after the app's own complete, in order or by a cut", () => {
    for (const how of [{ clean: true }, { clean: false }]) {
      const session = new Session();
      session.receiveStart();
      assert.deepEqual(session.receive("complete", { sources: [1] }, eventId(1)), ["onContent"]);
      assert.deepEqual(session.call("ended", how), ["onComplete", "close", "disconnected"]);
    }
  });

  test("does not end at a complete of the app that other events follow", () => {
    const session = new Session();
    session.receiveStart();
    session.receive("complete", { step: 1 }, eventId(1));
    session.receiveWord(2);
    assert.deepEqual(session.call("ended"), ["close", "reconnecting"]);
  });

  test("without control events ends with the connection, and reconnects after a cut", () => {
    const session = new Session();
    session.call("start");
    session.call("opened");
    session.receive("message", "a");
    assert.deepEqual(session.call("ended"), ["close", "reconnecting"]);
    session.advance();
    session.call("opened");
    assert.deepEqual(session.call("ended", { clean: true }), ["onComplete", "close", "disconnected"]);
  });

  test("is finished after status 204", () => {
    const session = new Session();
    session.receiveStart();
    session.receiveWord(1);
    session.reconnect();
    assert.deepEqual(session.call("refused", 204), ["onComplete", "close", "disconnected"]);
  });
});

describe("an early end", () => {
  for (const reason of ["duration_cap", "cancelled", "something_new"]) {
    test(`with ${reason} is incomplete and does not reconnect`, () => {
      const session = new Session();
      session.receiveStart();
      const data = { ...STREAM, reason };
      const effects = session.receive("complete", data, `${eventId(1)}.cut`);
      assert.deepEqual(effects, ["onComplete", "close", "disconnected"]);
      assert.equal(session.effects[0][1].incomplete, true);
      assert.equal(session.effects[0][1].reason, reason);
    });
  }

  test("with shutdown reconnects", () => {
    const session = new Session();
    session.receiveStart();
    session.receiveWord(1);
    const effects = session.receive("complete", { ...STREAM, reason: "shutdown" }, `${eventId(1)}.cut`);
    assert.deepEqual(effects, ["close", "reconnecting"]);
    assert.equal(session.machine.id, `${eventId(1)}.cut`);
  });

  test("with an error of the server fails and does not reconnect", () => {
    const session = new Session();
    session.receiveStart();
    const error = { code: "internal_error", type: "server_error", message: "It broke." };
    assert.deepEqual(session.receive("error", { ...STREAM, error }, `${eventId(0)}.cut`), [
      "onError",
      "close",
      "disconnected",
    ]);
    const { code, message, traceId } = session.effects[0][1];
    assert.deepEqual([code, message, traceId], ["internal_error", "It broke.", "t"]);
  });

  test("with a lost producer reconnects three times, then fails", () => {
    const session = new Session();
    session.receiveStart();
    const lost = { ...STREAM, error: { code: "producer_lost", message: "gone" } };
    for (let attempt = 1; attempt <= 3; attempt++) {
      assert.deepEqual(session.receive("error", lost), ["close", "reconnecting"]);
      session.advance();
      session.receiveStart({ resumed: true });
    }
    assert.deepEqual(session.receive("error", lost), ["onError", "close", "disconnected"]);
    assert.equal(session.effects[0][1].cause.code, "producer_lost");
  });

  test("is not caused by app events that have the names of control events", () => {
    const session = new Session();
    session.receiveStart();
    const [ids, own] = [[1, 2, 3, 4, 5], (seq) => eventId(seq)];
    const data = [{ a: 1 }, "text", { error: "no object" }, null, { stream_id: "mine" }];
    const types = ["start", "heartbeat", "error", "reset", "heartbeat"];
    for (const [at, id] of ids.entries()) {
      assert.deepEqual(session.receive(types[at], data[at], own(id)), ["onContent"]);
    }
  });

  test("is recognised by the prefix of the server if one is set", () => {
    const session = new Session({ eventPrefix: "sse." });
    session.call("start");
    session.call("opened");
    const data = { ...STREAM, resumed: false };
    assert.deepEqual(session.receive("sse.start", data, eventId(0)), ["onStart"]);
    assert.deepEqual(session.receive("complete", { ...STREAM, reason: "finished" }, eventId(1)), [
      "onContent",
    ]);
    assert.deepEqual(session.receive("sse.heartbeat", STREAM), ["onHeartbeat"]);
  });
});

describe("content that was already received", () => {
  test("is dropped", () => {
    const session = new Session();
    session.receiveStart();
    session.receiveWord(1);
    session.receiveWord(2);
    session.reconnect();
    session.receiveStart({ resumed: true, id: eventId(2) });
    assert.deepEqual(session.receiveWord(1), []);
    assert.deepEqual(session.receiveWord(2), []);
    assert.deepEqual(session.receiveWord(3), ["onContent"]);
    assert.deepEqual(session.receiveWord(3), []);
  });

  test("is not confused with events without an id, or with ids of the app", () => {
    const session = new Session();
    session.receiveStart();
    session.receiveWord(1);
    assert.deepEqual(session.receive("message", "too long to be kept"), ["onContent"]);
    assert.deepEqual(session.receive("message", "a", "x"), ["onContent"]);
    assert.deepEqual(session.receive("message", "b", "x"), ["onContent"]);
    assert.deepEqual(session.receive("message", "c", eventId(1, OTHER)), ["onContent"]);
  });

  test("is discarded after a reset", () => {
    const session = new Session();
    session.receiveStart();
    session.receiveWord(5);
    session.reconnect();
    session.call("opened");
    const data = { ...STREAM, resumed: false, reason: "gone" };
    assert.deepEqual(session.receive("reset", data, eventId(0, OTHER)), ["onReset", "onStart"]);
    assert.deepEqual(session.effects[0][1], { reason: "gone" });
    assert.deepEqual(session.receive("message", "a", eventId(1, OTHER)), ["onContent"]);
  });

  test("is discarded if a response without ids starts again, with or without start", () => {
    for (const withStart of [true, false]) {
      const session = new Session();
      session.call("start");
      session.call("opened");
      session.receive("message", "a");
      session.reconnect();
      session.call("opened");
      if (withStart) {
        const effects = session.receive("start", { ...STREAM, resumed: false }, eventId(0));
        assert.deepEqual(effects, ["onReset", "onStart"]);
      } else {
        assert.deepEqual(session.receive("message", "a"), ["onReset", "onContent"]);
        assert.deepEqual(session.receive("message", "b"), ["onContent"]);
      }
    }
  });

  test("is kept if the app resumes from its own ids", () => {
    const session = new Session();
    session.receiveStart();
    session.receive("message", "a", "7");
    session.reconnect();
    assert.deepEqual(session.receiveStart({ id: "7" }), ["onStart"]);
    assert.deepEqual(session.receive("message", "b", "8"), ["onContent"]);
  });
});

describe("start and stop", () => {
  test("stop cancels a stream on the server only if the middleware has numbered its events", () => {
    const started = new Session();
    started.receiveStart();
    started.receiveWord(4);
    assert.deepEqual(started.machine.stop().slice(0, 1), [["cancel", eventId(4)]]);
    const connecting = new Session();
    connecting.call("start");
    assert.deepEqual(connecting.stop(), ["close", "disconnected"]);
    const ofApp = new Session();
    ofApp.receiveStart();
    ofApp.receive("message", "a", "7");
    assert.deepEqual(ofApp.stop(), ["close", "disconnected"]);
    assert.deepEqual(ofApp.stop(), []);
  });

  test("stop cancels a stream that the client has left, once, and none that has ended", () => {
    const leave = {
      "by a stop without cancel": (session) => session.stop(false),
      "by giving up": (session) => session.call("ended"),
    };
    for (const [how, leaves] of Object.entries(leave)) {
      const session = new Session({ maxReconnectAttempts: 0 });
      session.receiveStart();
      session.receiveWord(4);
      leaves(session);
      assert.deepEqual(session.machine.stop(false), [], how);
      assert.deepEqual(session.machine.stop(), [["cancel", eventId(4)]], how);
      assert.deepEqual([session.machine.stop(), session.machine.id], [[], ""]);
    }
    const failed = new Session();
    failed.receiveStart();
    failed.receive("error", { ...STREAM, error: { code: "internal_error" } }, `${eventId(0)}.cut`);
    assert.deepEqual(failed.machine.stop(), []);
  });

  test("start resumes after a stop without cancel", () => {
    const session = new Session();
    session.receiveStart();
    session.receiveWord(4);
    assert.deepEqual(session.stop(false), ["close", "disconnected"]);
    assert.deepEqual(session.machine.start(session.now).at(-1), ["open", eventId(4)]);
    assert.deepEqual(session.receiveStart({ resumed: true, id: eventId(4) }), ["onStart"]);
    assert.deepEqual(session.receiveWord(4), []);
    assert.deepEqual(session.receiveWord(5), ["onContent"]);
  });

  test("start begins again after a stop with cancel, and discards the content once", () => {
    const session = new Session();
    session.receiveStart();
    session.receiveWord(4);
    session.stop();
    assert.deepEqual(session.call("start"), ["onReset", "connecting", "open"]);
    assert.equal(session.machine.id, "");
    assert.deepEqual(session.receiveStart(), ["onStart"]);
    session.stop();
    assert.deepEqual(session.call("start"), ["connecting", "open"], "there is no content to discard");
  });

  test("start resumes after the client gave up", () => {
    const session = new Session({ maxReconnectAttempts: 0 });
    session.receiveStart();
    session.receiveWord(4);
    session.call("ended");
    assert.deepEqual(session.machine.start(session.now).at(-1), ["open", eventId(4)]);
  });

  test("a second start has no effect", () => {
    const session = new Session();
    session.call("start");
    assert.deepEqual(session.call("start"), []);
  });
});

test("after random inputs in random order, the machine has a deadline or is disconnected", () => {
  let seed = 11;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const pick = (list) => list[Math.floor(random() * list.length)];
  const error = { code: pick(["producer_lost", "internal_error"]), message: "" };
  for (let round = 0; round < 3000; round++) {
    const session = new Session({
      random,
      maxReconnectAttempts: pick([0, 1, 3, Infinity]),
      isAway: () => random() < 0.3,
    });
    let opened = 0;
    let closed = 0;
    for (let step = 0; step < 40; step++) {
      session.now += pick([0, 1, 100, 5000, 20_000]);
      const open = opened > closed;
      const moves = [() => session.machine.start(session.now), () => session.machine.tick(session.now)];
      moves.push(() => session.machine.wake(session.now));
      if (random() < 0.05) moves.push(() => session.machine.stop(random() < 0.5));
      if (open && session.machine.state !== "connected") {
        moves.push(() => session.machine.opened(session.now));
        moves.push(() => session.machine.refused(session.now, pick([204, 404, 500, 503])));
      } else if (open) {
        const wire = (event, data, id) => () =>
          session.machine.event(session.now, { event, data: JSON.stringify(data), id, hasId: true });
        moves.push(wire("start", { ...STREAM, resumed: random() < 0.5 }, eventId(0)));
        moves.push(wire("message", 1, eventId(step)), wire("heartbeat", STREAM, eventId(step)));
        moves.push(wire("complete", { ...STREAM, reason: pick(["finished", "shutdown"]) }, eventId(1)));
        moves.push(wire("error", { ...STREAM, error }, eventId(1)));
        moves.push(wire("complete", {}, eventId(step)));
      }
      if (open) moves.push(() => session.machine.ended(session.now, { clean: random() < 0.5 }));
      for (const [name] of pick(moves)()) {
        if (name === "open") opened++;
        if (name === "close") closed = opened;
        if (name === "open") assert.equal(opened, closed + 1, "one connection at a time");
      }
      const { state, deadline } = session.machine;
      assert.equal(state === "disconnected", deadline === Infinity, `${state} until ${deadline}`);
      if (state === "disconnected") assert.ok(opened === closed, "no connection stays open");
    }
  }
});
