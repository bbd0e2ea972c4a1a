// StreamMachine: when it reconnects, after which delay, and when it gives up.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { eventId, Session, STREAM } from "./session.mjs";

const detail = (effects) => effects.find(([name]) => name === "onStateChange")?.[2];

describe("after a cut the client", () => {
  test("reconnects with the id of the last event", () => {
    const session = new Session();
    session.receiveStart();
    session.receiveWord(1);
    session.receiveWord(2);
    session.call("ended");
    session.now = session.machine.deadline;
    assert.deepEqual(session.machine.tick(session.now), [["open", eventId(2)]]);
  });

  test("waits 2 s, then longer each time, up to 30 s, with jitter", () => {
    const delays = (random) => {
      const session = new Session({ random: () => random, maxReconnectAttempts: 7 });
      session.call("start");
      return Array.from({ length: 7 }, () => session.reconnect());
    };
    assert.deepEqual(delays(0), [2000, 4000, 8000, 16000, 30000, 30000, 30000]);
    assert.deepEqual(delays(1), [3000, 6000, 12000, 24000, 45000, 45000, 45000]);
  });

  test("waits at least the time in retry, and at least 100 ms", () => {
    for (const [retry, delay] of [[300, 300], [100, 100], [5, 100], [0, 100], [60_000, 60_000]]) {
      const session = new Session();
      session.receiveStart();
      session.machine.received(session.now, retry);
      assert.equal(session.reconnect(), delay);
    }
    assert.equal(new Session({ reconnectDelay: 0 }).startAndReconnect(), 100);
  });

  test("waits longer each time, though each connection brings an event and a tiny retry", () => {
    for (const retry of [0, 1, 5, 100]) {
      for (const how of [{ clean: true }, { clean: false }]) {
        const session = new Session();
        session.receiveStart();
        const delays = Array.from({ length: 7 }, (_, seq) => {
          session.machine.received(session.now, retry);
          session.receiveWord(seq + 1);
          const delay = session.reconnect(how);
          session.receiveStart({ resumed: true, id: eventId(seq + 1) });
          return delay;
        });
        assert.deepEqual(delays, [100, 200, 400, 800, 1600, 2000, 2000], `retry ${retry}`);
        session.receiveWord(8);
        session.now += 500; // this one has lasted
        assert.equal(session.reconnect(how), Math.max(retry, 100));
      }
    }
  });

  test("waits longer after each failure, though the retry is tiny", () => {
    const session = new Session({ maxReconnectAttempts: Infinity });
    session.receiveStart();
    session.machine.received(session.now, 0);
    const delays = Array.from({ length: 10 }, () => session.reconnect());
    assert.deepEqual(delays.slice(0, 3), [100, 200, 400]);
    assert.deepEqual(delays.slice(-1), [30_000]);
  });

  test("gives up after three attempts", () => {
    const session = new Session();
    session.call("start");
    for (let attempt = 1; attempt <= 3; attempt++) {
      session.reconnect();
      assert.equal(session.machine.attempts, attempt);
    }
    assert.deepEqual(session.call("ended"), ["onError", "close", "disconnected"]);
    assert.equal(session.machine.deadline, Infinity);
    assert.equal(session.machine.attempts, 3);
  });

  test("reconnects without limit if each connection makes progress", () => {
    const session = new Session();
    session.receiveStart();
    for (let seq = 1; seq <= 100; seq++) {
      session.receiveWord(seq);
      assert.equal(session.machine.attempts, 0);
      session.reconnect();
      assert.equal(session.machine.attempts, 1);
      session.receiveStart({ resumed: true, id: eventId(seq) });
      assert.equal(session.machine.attempts, 1, "a start is no progress");
    }
  });

  test("does not reconnect if no attempt is allowed, except after a rotation", () => {
    const session = new Session({ maxReconnectAttempts: 0 });
    session.receiveStart();
    session.receive("heartbeat", STREAM);
    session.reconnect({ clean: true });
    assert.equal(session.machine.attempts, 0);
    session.receiveStart({ resumed: true });
    assert.deepEqual(session.call("ended"), ["onError", "close", "disconnected"]);
  });

  test("counts a connection that ended in order but brought no event", () => {
    const session = new Session();
    session.receiveStart();
    for (let attempt = 1; attempt <= 3; attempt++) {
      session.reconnect({ clean: true });
      session.receiveStart({ resumed: true });
      assert.equal(session.machine.attempts, attempt);
    }
    assert.deepEqual(session.call("ended", { clean: true }), ["onError", "close", "disconnected"]);
  });

  test("counts attempts only while the page is online and visible, however the connection is lost", () => {
    const losses = [
      (session) => session.call("ended"),
      (session) => session.receiveStart({ resumed: true }) && session.call("ended", { clean: true }),
      (session) => session.call("refused", 503),
      (session) => (session.now = session.machine.deadline) && session.call("tick"),
      (session) => session.call("opened") && session.receive("complete", { ...STREAM, reason: "shutdown" }),
    ];
    for (const lose of losses) {
      let isAway = true;
      const session = new Session({ isAway: () => isAway });
      session.receiveStart();
      const delays = Array.from({ length: 50 }, () => lose(session) && session.advance());
      assert.deepEqual(delays.slice(0, 5), [2000, 4000, 8000, 16_000, 30_000]);
      assert.deepEqual([session.machine.attempts, session.machine.state], [0, "reconnecting"]);
      isAway = false;
      for (let attempt = 1; attempt <= 3; attempt++) lose(session) && session.advance();
      assert.deepEqual([session.machine.attempts, session.machine.state], [3, "reconnecting"]);
      lose(session);
      assert.equal(session.machine.state, "disconnected");
    }
  });

  test("has no limit of attempts if the page sets none", () => {
    const session = new Session({ maxReconnectAttempts: Infinity });
    session.receiveStart();
    for (let attempt = 1; attempt <= 2000; attempt++) session.reconnect();
    assert.deepEqual([session.machine.attempts, session.machine.state], [2000, "reconnecting"]);
  });

  test("reports the reason, the attempt and the delay", () => {
    const session = new Session();
    session.receiveStart();
    const effects = session.machine.ended(session.now);
    assert.deepEqual(detail(effects), { attempt: 1, reason: "cut", delay: 2000 });
  });
});

describe("silence", () => {
  const silentFor = (session) => session.machine.deadline - session.now;

  test("has the threshold in start, by default 15 s", () => {
    const session = new Session();
    session.call("start");
    session.call("opened");
    assert.equal(silentFor(session), 15_000);
    session.receiveStart({ silence_threshold: 3 });
    assert.equal(silentFor(session), 3000);
    session.receiveStart({ silence_threshold: null });
    assert.equal(silentFor(session), Infinity);
    session.receiveStart({ silence_threshold: undefined });
    assert.equal(silentFor(session), 15_000);
  });

  test("may have no limit, but an attempt to reconnect has one", () => {
    const session = new Session();
    session.receiveStart({ silence_threshold: null });
    session.receiveWord(1);
    session.reconnect();
    assert.equal(silentFor(session), 60_000);
    session.now += 60_000;
    assert.deepEqual(session.call("tick"), ["close", "reconnecting"]);
  });

  test("has the threshold of the page if one is set", () => {
    const session = new Session({ silenceThreshold: 0.7 });
    session.receiveStart({ silence_threshold: 3 });
    assert.equal(silentFor(session), 700);
  });

  test("ends with any byte, or closes the connection", () => {
    const session = new Session();
    session.receiveStart();
    session.now += 14_999;
    assert.deepEqual(session.call("tick"), []);
    session.machine.received(session.now);
    session.now += 14_999;
    assert.deepEqual(session.call("tick"), []);
    session.now += 1;
    assert.deepEqual(session.call("tick"), ["close", "reconnecting"]);
  });

  test("may last a minute before a first response, but not before a resumed one", () => {
    const session = new Session();
    session.call("start");
    assert.equal(silentFor(session), 60_000);
    session.receiveStart();
    session.reconnect();
    assert.equal(silentFor(session), 15_000);
  });

  test("after the app's own complete ends the stream", () => {
    const session = new Session();
    session.receiveStart();
    session.receive("complete", {}, eventId(1));
    session.now += 15_000;
    assert.deepEqual(session.call("tick"), ["onComplete", "close", "disconnected"]);
  });
});

describe("a wake", () => {
  test("opens a waiting connection at once", () => {
    const session = new Session();
    session.receiveStart();
    session.call("ended");
    assert.deepEqual(session.call("wake"), ["open"]);
    assert.deepEqual(session.call("wake"), []);
  });

  test("replaces a connection that was silent for half of its threshold, and no other", () => {
    const session = new Session();
    session.receiveStart();
    session.now += 7500;
    assert.deepEqual(session.call("wake"), []);
    session.now += 1;
    assert.deepEqual(session.call("wake"), ["close", "reconnecting", "open"]);
  });

  test("replaces a connection that was silent while the device slept, whose clock then stands", () => {
    const session = new Session();
    session.receiveStart();
    assert.deepEqual(session.call("wake", -3_600_000), [], "the wall clock was set back");
    assert.deepEqual(session.call("wake", 7500), []);
    assert.deepEqual(session.call("wake", 7501), ["close", "reconnecting", "open"]);
  });

  test("replaces a connection after its deadline passed in a suspended page", () => {
    const session = new Session();
    session.receiveStart();
    session.now += 3_600_000;
    assert.deepEqual(session.call("wake"), ["close", "reconnecting", "open"]);
  });

  test("does not shorten a Retry-After of the server", () => {
    const session = new Session();
    session.call("start");
    session.call("refused", 429, { retryAfter: 9000 });
    assert.deepEqual(session.call("wake"), []);
    assert.equal(session.advance(), 9000);
  });

  test("has no effect after the end", () => {
    const session = new Session();
    assert.deepEqual(session.call("wake"), []);
    session.receiveStart();
    session.stop();
    assert.deepEqual(session.call("wake"), []);
    assert.deepEqual(session.call("tick"), []);
  });
});

describe("a refused request", () => {
  for (const status of [200, 301, 400, 401, 403, 404, 405, 410, 422, 500, 501]) {
    test(`with ${status} fails`, () => {
      const session = new Session();
      session.call("start");
      const [[name, error]] = session.machine.refused(session.now, status, { traceId: "t" });
      const { code, traceId } = error;
      assert.deepEqual([name, code, error.status, traceId], ["onError", "http", status, "t"]);
      assert.equal(session.machine.state, "disconnected");
    });
  }

  for (const status of [500, 501, 502, 508, 511, 520, 530, 599]) {
    test(`with ${status} is retried after a connection that has worked`, () => {
      const session = new Session();
      session.receiveStart();
      session.call("ended");
      for (let attempt = 1; attempt <= 2; attempt++) {
        session.advance();
        assert.deepEqual(session.call("refused", status), ["close", "reconnecting"]);
      }
      session.advance();
      const [[name, { code, cause }]] = session.machine.refused(session.now, status);
      assert.deepEqual([name, code, cause.status], ["onError", "gave_up", status]);
    });
  }

  test("with 500 is retried by a page that resumes, and not by one that starts again", () => {
    const session = new Session();
    session.machine.start(session.now, eventId(4));
    assert.deepEqual(session.call("refused", 500), ["close", "reconnecting"]);
    session.stop();
    session.call("start");
    assert.deepEqual(session.call("refused", 500), ["onError", "close", "disconnected"]);
  });

  test("with 4xx fails, also after a connection that has worked", () => {
    for (const status of [200, 301, 400, 401, 403, 404, 405, 410, 422]) {
      const session = new Session();
      session.receiveStart();
      session.reconnect();
      assert.deepEqual(session.call("refused", status), ["onError", "close", "disconnected"]);
    }
  });

  for (const status of [408, 425, 429, 502, 503, 504]) {
    test(`with ${status} is retried, after Retry-After if it is present`, () => {
      const session = new Session();
      session.call("start");
      const effects = session.call("refused", status, { retryAfter: 7000 });
      assert.deepEqual(effects, ["close", "reconnecting"]);
      assert.equal(session.advance(), 7000);
      session.call("refused", status);
      assert.equal(session.advance(), 4000);
      session.call("refused", status);
      session.advance();
      const [[name, error]] = session.machine.refused(session.now, status);
      assert.deepEqual([name, error.code, error.cause.status], ["onError", "gave_up", status]);
    });
  }
});
