// The machine decides as the contract says: events and times in, what is to be done out.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { StreamMachine } from "../../sse_middleware/client/sse-client.js";

const SECRET = "gbIM0uFqHGZdYXNM4YkE9w";
const OTHER = "AAAAAAAAAAAAAAAAAAAAAA";
const cursor = (seq, secret = SECRET) => `${secret}-${seq}`;
const SAID = { stream_id: "s", trace_id: "t" };

/** A machine on a clock of its own that stands still unless it is moved. */
class Play {
  constructor(options = {}) {
    this.machine = new StreamMachine({ random: () => 0, ...options });
    this.now = 1000;
    this.lastEventId = "";
  }

  do(method, ...rest) {
    const effects = this.machine[method](this.now, ...rest);
    return effects.map(([what, first]) => (what === "onStateChange" ? first : what));
  }

  stop(cancel) {
    return this.machine.stop(cancel).map(([what, first]) => (what === "onStateChange" ? first : what));
  }

  /** Take an event; `id` is what the block itself says. */
  take(event, data, id) {
    this.lastEventId = id ?? this.lastEventId;
    const text = typeof data === "string" ? data : JSON.stringify(data);
    const wire = { event, data: text, id: this.lastEventId, hasId: id !== undefined };
    this.effects = this.machine.event(this.now, wire);
    return this.effects.map(([what, first]) => (what === "onStateChange" ? first : what));
  }

  begin({ resumed = false, id = cursor(0), ...rest } = {}) {
    if (this.machine.state === "disconnected") this.do("start");
    this.do("opened");
    return this.take("start", { ...SAID, resumed, silence_threshold: 15, ...rest }, id);
  }

  word(seq, data = "word") {
    return this.take("message", data, cursor(seq));
  }

  /** Lose the connection, and wait until the next is opened. */
  comeBack(how) {
    this.do("ended", how);
    return this.wait();
  }

  wait() {
    const waited = this.machine.deadline - this.now;
    this.now = this.machine.deadline;
    assert.deepEqual(this.do("tick"), ["open"]);
    return waited;
  }
}

const detail = (effects) => effects.find(([what]) => what === "onStateChange")?.[2];

describe("a stream that is whole", () => {
  test("goes through connecting, connected and disconnected", () => {
    const play = new Play();
    assert.deepEqual(play.do("start"), ["connecting", "open"]);
    assert.deepEqual(play.do("opened"), ["connected"]);
    assert.deepEqual(play.begin(), ["onStart"]);
    assert.deepEqual(play.word(1), ["onContent"]);
    const told = { ...SAID, reason: "finished" };
    assert.deepEqual(play.take("complete", told, `${cursor(1)}.end`), [
      "onComplete",
      "close",
      "disconnected",
    ]);
    assert.equal(play.effects[0][1].incomplete, false);
    assert.equal(play.machine.deadline, Infinity);
    assert.equal(play.machine.id, "");
  });

  test("is told with parsed data, or with the text where it is none", () => {
    const play = new Play();
    play.begin();
    play.word(1, '{"word": "a"}');
    assert.deepEqual(play.effects[0].slice(1), [
      { word: "a" },
      { event: "message", data: '{"word": "a"}', id: cursor(1), hasId: true },
    ]);
    play.word(2, "{no json");
    assert.equal(play.effects[0][1], "{no json");
  });

  test("ends by the app's own complete, however the connection ends", () => {
    for (const how of [{ clean: true }, { clean: false }]) {
      const play = new Play();
      play.begin();
      assert.deepEqual(play.take("complete", { sources: [1] }, cursor(1)), ["onContent"]);
      assert.deepEqual(play.do("ended", how), ["onComplete", "close", "disconnected"]);
    }
  });

  test("does not end by a complete of the app's behind which something has come", () => {
    const play = new Play();
    play.begin();
    play.take("complete", { step: 1 }, cursor(1));
    play.word(2);
    assert.deepEqual(play.do("ended"), ["close", "reconnecting"]);
  });

  test("of a server without control events ends where the connection does, and not at a cut", () => {
    const play = new Play();
    play.do("start");
    play.do("opened");
    play.take("message", "a");
    assert.deepEqual(play.do("ended"), ["close", "reconnecting"]);
    play.wait();
    play.do("opened");
    assert.deepEqual(play.do("ended", { clean: true }), ["onComplete", "close", "disconnected"]);
  });

  test("is whole at a 204", () => {
    const play = new Play();
    play.begin();
    play.word(1);
    play.comeBack();
    assert.deepEqual(play.do("refused", 204), ["onComplete", "close", "disconnected"]);
  });
});

describe("an end before its time", () => {
  for (const reason of ["duration_cap", "cancelled", "something_new"]) {
    test(`${reason} is told as incomplete, and not gone on with`, () => {
      const play = new Play();
      play.begin();
      const told = { ...SAID, reason };
      const effects = play.take("complete", told, `${cursor(1)}.cut`);
      assert.deepEqual(effects, ["onComplete", "close", "disconnected"]);
      assert.equal(play.effects[0][1].incomplete, true);
      assert.equal(play.effects[0][1].reason, reason);
    });
  }

  test("shutdown comes back", () => {
    const play = new Play();
    play.begin();
    play.word(1);
    const effects = play.take("complete", { ...SAID, reason: "shutdown" }, `${cursor(1)}.cut`);
    assert.deepEqual(effects, ["close", "reconnecting"]);
    assert.equal(play.machine.id, `${cursor(1)}.cut`);
  });

  test("an error of the server's is told, and not gone on with", () => {
    const play = new Play();
    play.begin();
    const error = { code: "internal_error", type: "server_error", message: "It broke." };
    assert.deepEqual(play.take("error", { ...SAID, error }, `${cursor(0)}.cut`), [
      "onError",
      "close",
      "disconnected",
    ]);
    const told = play.effects[0][1];
    assert.deepEqual([told.code, told.message, told.traceId], ["internal_error", "It broke.", "t"]);
  });

  test("a producer that is lost is asked for again, a few times", () => {
    const play = new Play();
    play.begin();
    const lost = { ...SAID, error: { code: "producer_lost", message: "gone" } };
    for (let attempt = 1; attempt <= 3; attempt++) {
      assert.deepEqual(play.take("error", lost), ["close", "reconnecting"]);
      play.wait();
      play.begin({ resumed: true });
    }
    assert.deepEqual(play.take("error", lost), ["onError", "close", "disconnected"]);
    assert.equal(play.effects[0][1].cause.code, "producer_lost");
  });

  test("events of the app's that have names of ours are content", () => {
    const play = new Play();
    play.begin();
    const [ids, own] = [[1, 2, 3, 4, 5], (seq) => cursor(seq)];
    const data = [{ a: 1 }, "text", { error: "no object" }, null, { stream_id: "mine" }];
    const names = ["start", "heartbeat", "error", "reset", "heartbeat"];
    for (const [at, id] of ids.entries()) {
      assert.deepEqual(play.take(names[at], data[at], own(id)), ["onContent"]);
    }
  });

  test("control events carry the prefix that the server gives them", () => {
    const play = new Play({ eventPrefix: "sse." });
    play.do("start");
    play.do("opened");
    assert.deepEqual(play.take("sse.start", { ...SAID, resumed: false }, cursor(0)), ["onStart"]);
    assert.deepEqual(play.take("complete", { ...SAID, reason: "finished" }, cursor(1)), [
      "onContent",
    ]);
    assert.deepEqual(play.take("sse.heartbeat", SAID), ["onHeartbeat"]);
  });
});

describe("a cut", () => {
  test("is come back from with the id of the last event", () => {
    const play = new Play();
    play.begin();
    play.word(1);
    play.word(2);
    play.do("ended");
    play.now = play.machine.deadline;
    assert.deepEqual(play.machine.tick(play.now), [["open", cursor(2)]]);
  });

  test("is waited behind from 2 s on, longer each time, up to 30 s and with jitter", () => {
    const waits = (random) => {
      const play = new Play({ random: () => random, maxReconnectAttempts: 7 });
      play.do("start");
      return Array.from({ length: 7 }, () => play.comeBack());
    };
    assert.deepEqual(waits(0), [2000, 4000, 8000, 16000, 30000, 30000, 30000]);
    assert.deepEqual(waits(1), [3000, 6000, 12000, 24000, 45000, 45000, 45000]);
  });

  test("is waited behind for as long as retry says, or longer", () => {
    for (const [retry, waited] of [[100, 100], [0, 0], [60_000, 60_000]]) {
      const play = new Play();
      play.begin();
      play.machine.heard(play.now, retry);
      assert.equal(play.comeBack(), waited);
    }
  });

  test("is come back from three times, then it is given up", () => {
    const play = new Play();
    play.do("start");
    for (let attempt = 1; attempt <= 3; attempt++) {
      play.comeBack();
      assert.equal(play.machine.attempts, attempt);
    }
    assert.deepEqual(play.do("ended"), ["onError", "close", "disconnected"]);
    assert.equal(play.machine.deadline, Infinity);
    assert.equal(play.machine.attempts, 3);
  });

  test("is come back from as often as there is progress", () => {
    const play = new Play();
    play.begin();
    for (let seq = 1; seq <= 100; seq++) {
      play.word(seq);
      assert.equal(play.machine.attempts, 0);
      play.comeBack();
      assert.equal(play.machine.attempts, 1);
      play.begin({ resumed: true, id: cursor(seq) });
      assert.equal(play.machine.attempts, 1, "a start is no progress");
    }
  });

  test("is never come back from where no attempt is allowed, but a rotation is", () => {
    const play = new Play({ maxReconnectAttempts: 0 });
    play.begin();
    play.take("heartbeat", SAID);
    play.comeBack({ clean: true });
    assert.equal(play.machine.attempts, 0);
    play.begin({ resumed: true });
    assert.deepEqual(play.do("ended"), ["onError", "close", "disconnected"]);
  });

  test("counts where the connection has ended in order but brought nothing", () => {
    const play = new Play();
    play.begin();
    for (let attempt = 1; attempt <= 3; attempt++) {
      play.comeBack({ clean: true });
      play.begin({ resumed: true });
      assert.equal(play.machine.attempts, attempt);
    }
    assert.deepEqual(play.do("ended", { clean: true }), ["onError", "close", "disconnected"]);
  });

  test("does not count while the machine is offline", () => {
    const play = new Play();
    play.begin();
    play.word(1);
    for (let number = 0; number < 50; number++) {
      assert.equal(play.comeBack({ offline: true }), 30_000, "which `online` ends before");
    }
    assert.equal(play.machine.attempts, 0);
    assert.equal(play.machine.state, "reconnecting");
  });

  test("is told with its reason, the attempt and the delay", () => {
    const play = new Play();
    play.begin();
    const told = detail(play.machine.ended(play.now));
    assert.deepEqual(told, { attempt: 1, reason: "cut", delay: 2000 });
  });
});

describe("what the client has already", () => {
  test("is dropped", () => {
    const play = new Play();
    play.begin();
    play.word(1);
    play.word(2);
    play.comeBack();
    play.begin({ resumed: true, id: cursor(2) });
    assert.deepEqual(play.word(1), []);
    assert.deepEqual(play.word(2), []);
    assert.deepEqual(play.word(3), ["onContent"]);
    assert.deepEqual(play.word(3), []);
  });

  test("is told apart from events without an id, and from ids of the app's", () => {
    const play = new Play();
    play.begin();
    play.word(1);
    assert.deepEqual(play.take("message", "too long to be kept"), ["onContent"]);
    assert.deepEqual(play.take("message", "a", "x"), ["onContent"]);
    assert.deepEqual(play.take("message", "b", "x"), ["onContent"]);
    assert.deepEqual(play.take("message", "c", cursor(1, OTHER)), ["onContent"]);
  });

  test("is thrown away at a reset", () => {
    const play = new Play();
    play.begin();
    play.word(5);
    play.comeBack();
    play.do("opened");
    const told = { ...SAID, resumed: false, reason: "gone" };
    assert.deepEqual(play.take("reset", told, cursor(0, OTHER)), ["onReset", "onStart"]);
    assert.deepEqual(play.effects[0][1], { reason: "gone" });
    assert.deepEqual(play.take("message", "a", cursor(1, OTHER)), ["onContent"]);
  });

  test("is thrown away where an answer without ids begins anew, with start or without", () => {
    for (const withStart of [true, false]) {
      const play = new Play();
      play.do("start");
      play.do("opened");
      play.take("message", "a");
      play.comeBack();
      play.do("opened");
      if (withStart) {
        const effects = play.take("start", { ...SAID, resumed: false }, cursor(0));
        assert.deepEqual(effects, ["onReset", "onStart"]);
      } else {
        assert.deepEqual(play.take("message", "a"), ["onReset", "onContent"]);
        assert.deepEqual(play.take("message", "b"), ["onContent"]);
      }
    }
  });

  test("is kept where the app goes on by ids of its own", () => {
    const play = new Play();
    play.begin();
    play.take("message", "a", "7");
    play.comeBack();
    assert.deepEqual(play.begin({ id: "7" }), ["onStart"]);
    assert.deepEqual(play.take("message", "b", "8"), ["onContent"]);
  });
});

describe("silence", () => {
  const silentFor = (play) => play.machine.deadline - play.now;

  test("is measured by what start says, else 15 s", () => {
    const play = new Play();
    play.do("start");
    play.do("opened");
    assert.equal(silentFor(play), 15_000);
    play.begin({ silence_threshold: 3 });
    assert.equal(silentFor(play), 3000);
    play.begin({ silence_threshold: null });
    assert.equal(silentFor(play), Infinity);
    play.begin({ silence_threshold: undefined });
    assert.equal(silentFor(play), 15_000);
  });

  test("may be endless, but an attempt to come back is not", () => {
    const play = new Play();
    play.begin({ silence_threshold: null });
    play.word(1);
    play.comeBack();
    assert.equal(silentFor(play), 60_000);
    play.now += 60_000;
    assert.deepEqual(play.do("tick"), ["close", "reconnecting"]);
  });

  test("is measured by what the page says before that", () => {
    const play = new Play({ silenceThreshold: 700 });
    play.begin({ silence_threshold: 3 });
    assert.equal(silentFor(play), 700);
  });

  test("ends at any byte, and else the connection", () => {
    const play = new Play();
    play.begin();
    play.now += 14_999;
    assert.deepEqual(play.do("tick"), []);
    play.machine.heard(play.now);
    play.now += 14_999;
    assert.deepEqual(play.do("tick"), []);
    play.now += 1;
    assert.deepEqual(play.do("tick"), ["close", "reconnecting"]);
  });

  test("before a first answer may last a minute, before a resumed one no longer than any", () => {
    const play = new Play();
    play.do("start");
    assert.equal(silentFor(play), 60_000);
    play.begin();
    play.comeBack();
    assert.equal(silentFor(play), 15_000);
  });

  test("behind the app's own complete is the end", () => {
    const play = new Play();
    play.begin();
    play.take("complete", {}, cursor(1));
    play.now += 15_000;
    assert.deepEqual(play.do("tick"), ["onComplete", "close", "disconnected"]);
  });
});

describe("a wake", () => {
  test("opens at once what waits", () => {
    const play = new Play();
    play.begin();
    play.do("ended");
    assert.deepEqual(play.do("wake"), ["open"]);
    assert.deepEqual(play.do("wake"), []);
  });

  test("opens anew what has been silent for half of its time, and leaves the rest", () => {
    const play = new Play();
    play.begin();
    play.now += 7500;
    assert.deepEqual(play.do("wake"), []);
    play.now += 1;
    assert.deepEqual(play.do("wake"), ["close", "reconnecting", "open"]);
  });

  test("sees at once that the time was over while the page slept", () => {
    const play = new Play();
    play.begin();
    play.now += 3_600_000;
    assert.deepEqual(play.do("wake"), ["close", "reconnecting", "open"]);
  });

  test("does not hurry a client that the server has told to wait", () => {
    const play = new Play();
    play.do("start");
    play.do("refused", 429, { retryAfter: 9000 });
    assert.deepEqual(play.do("wake"), []);
    assert.equal(play.wait(), 9000);
  });

  test("is nothing to a client that has ended", () => {
    const play = new Play();
    assert.deepEqual(play.do("wake"), []);
    play.begin();
    play.stop();
    assert.deepEqual(play.do("wake"), []);
    assert.deepEqual(play.do("tick"), []);
  });
});

describe("a refusal", () => {
  for (const status of [200, 301, 400, 401, 403, 404, 405, 410, 422, 500, 501]) {
    test(`by ${status} is the end`, () => {
      const play = new Play();
      play.do("start");
      const [[what, error]] = play.machine.refused(play.now, status, { traceId: "t" });
      assert.deepEqual([what, error.code, error.status, error.traceId], ["onError", "http", status, "t"]);
      assert.equal(play.machine.state, "disconnected");
    });
  }

  for (const status of [408, 425, 429, 502, 503, 504]) {
    test(`by ${status} is tried again, after Retry-After where there is one`, () => {
      const play = new Play();
      play.do("start");
      assert.deepEqual(play.do("refused", status, { retryAfter: 7000 }), ["close", "reconnecting"]);
      assert.equal(play.wait(), 7000);
      play.do("refused", status);
      assert.equal(play.wait(), 4000);
      play.do("refused", status);
      play.wait();
      const [[what, error]] = play.machine.refused(play.now, status);
      assert.deepEqual([what, error.code, error.cause.status], ["onError", "gave_up", status]);
    });
  }
});

describe("stop", () => {
  test("cancels on the server what has a cursor, and nothing else", () => {
    const begun = new Play();
    begun.begin();
    begun.word(4);
    assert.deepEqual(begun.machine.stop().slice(0, 1), [["cancel", cursor(4)]]);
    const connecting = new Play();
    connecting.do("start");
    assert.deepEqual(connecting.stop(), ["close", "disconnected"]);
    const foreign = new Play();
    foreign.begin();
    foreign.take("message", "a", "7");
    assert.deepEqual(foreign.stop(), ["close", "disconnected"]);
    assert.deepEqual(foreign.stop(), []);
  });

  test("without a cancel is gone on with by start", () => {
    const play = new Play();
    play.begin();
    play.word(4);
    assert.deepEqual(play.stop(false), ["close", "disconnected"]);
    assert.deepEqual(play.machine.start(play.now).at(-1), ["open", cursor(4)]);
    assert.deepEqual(play.begin({ resumed: true, id: cursor(4) }), ["onStart"]);
    assert.deepEqual(play.word(4), []);
    assert.deepEqual(play.word(5), ["onContent"]);
  });

  test("with a cancel is begun anew by start, and what came is thrown away once", () => {
    const play = new Play();
    play.begin();
    play.word(4);
    play.stop();
    assert.deepEqual(play.do("start"), ["onReset", "connecting", "open"]);
    assert.equal(play.machine.id, "");
    assert.deepEqual(play.begin(), ["onStart"]);
    play.stop();
    assert.deepEqual(play.do("start"), ["connecting", "open"], "nothing has come");
  });

  test("what was given up is gone on with by start", () => {
    const play = new Play({ maxReconnectAttempts: 0 });
    play.begin();
    play.word(4);
    play.do("ended");
    assert.deepEqual(play.machine.start(play.now).at(-1), ["open", cursor(4)]);
  });

  test("a second start is none", () => {
    const play = new Play();
    play.do("start");
    assert.deepEqual(play.do("start"), []);
  });
});

test("whatever happens in whatever order, the machine waits for something or has ended", () => {
  let seed = 11;
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
  const pick = (list) => list[Math.floor(random() * list.length)];
  const error = { code: pick(["producer_lost", "internal_error"]), message: "" };
  for (let round = 0; round < 3000; round++) {
    const play = new Play({ random, maxReconnectAttempts: pick([0, 1, 3]) });
    let opened = 0;
    let closed = 0;
    for (let step = 0; step < 40; step++) {
      play.now += pick([0, 1, 100, 5000, 20_000]);
      const open = opened > closed;
      const moves = [() => play.machine.start(play.now), () => play.machine.tick(play.now)];
      moves.push(() => play.machine.wake(play.now));
      if (random() < 0.05) moves.push(() => play.machine.stop(random() < 0.5));
      if (open && play.machine.state !== "connected") {
        moves.push(() => play.machine.opened(play.now));
        moves.push(() => play.machine.refused(play.now, pick([204, 404, 503])));
      } else if (open) {
        const wire = (event, data, id) => () =>
          play.machine.event(play.now, { event, data: JSON.stringify(data), id, hasId: true });
        moves.push(wire("start", { ...SAID, resumed: random() < 0.5 }, cursor(0)));
        moves.push(wire("message", 1, cursor(step)), wire("heartbeat", SAID, cursor(step)));
        moves.push(wire("complete", { ...SAID, reason: pick(["finished", "shutdown"]) }, cursor(1)));
        moves.push(wire("error", { ...SAID, error }, cursor(1)), wire("complete", {}, cursor(step)));
      }
      if (open) moves.push(() => play.machine.ended(play.now, { clean: random() < 0.5 }));
      for (const [what] of pick(moves)()) {
        if (what === "open") opened++;
        if (what === "close") closed = opened;
        if (what === "open") assert.equal(opened, closed + 1, "one connection at a time");
      }
      const { state, deadline } = play.machine;
      assert.equal(state === "disconnected", deadline === Infinity, `${state} until ${deadline}`);
      if (state === "disconnected") assert.ok(opened === closed, "nothing is left open");
    }
  }
});
