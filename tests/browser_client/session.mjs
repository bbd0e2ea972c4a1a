// A StreamMachine with a clock, for the tests of the machine.
import assert from "node:assert/strict";
import { StreamMachine } from "../../sse_middleware/client/sse-client.js";

const SECRET = "gbIM0uFqHGZdYXNM4YkE9w";
export const OTHER = "AAAAAAAAAAAAAAAAAAAAAA";
export const eventId = (seq, secret = SECRET) => `${secret}-${seq}`;
export const STREAM = { stream_id: "s", trace_id: "t" };

/** The names of effects, and for a state change the new state. */
const names = (effects) =>
  effects.map(([name, first]) => (name === "onStateChange" ? first : name));

/** A machine with a clock that advances only when a test changes `now`. */
export class Session {
  constructor(options = {}) {
    this.machine = new StreamMachine({ random: () => 0, ...options });
    this.now = 1000;
    this.lastEventId = "";
  }

  call(method, ...rest) {
    return names(this.machine[method](this.now, ...rest));
  }

  stop(cancel) {
    return names(this.machine.stop(cancel));
  }

  /** Receive an event; `id` is undefined if the event has no `id` line. */
  receive(event, data, id) {
    this.lastEventId = id ?? this.lastEventId;
    const text = typeof data === "string" ? data : JSON.stringify(data);
    const wire = { event, data: text, id: this.lastEventId, hasId: id !== undefined };
    this.effects = this.machine.event(this.now, wire);
    return names(this.effects);
  }

  receiveStart({ resumed = false, id = eventId(0), ...rest } = {}) {
    if (this.machine.state === "disconnected") this.call("start");
    this.call("opened");
    return this.receive("start", { ...STREAM, resumed, silence_threshold: 15, ...rest }, id);
  }

  receiveWord(seq, data = "word") {
    return this.receive("message", data, eventId(seq));
  }

  startAndReconnect() {
    this.call("start");
    return this.reconnect();
  }

  /** Lose the connection, and advance the clock until the next one opens. */
  reconnect(how) {
    this.call("ended", how);
    return this.advance();
  }

  /** Advance the clock to the deadline, at which the next connection opens; return the delay. */
  advance() {
    const delay = this.machine.deadline - this.now;
    this.now = this.machine.deadline;
    assert.deepEqual(this.call("tick"), ["open"]);
    return delay;
  }
}
