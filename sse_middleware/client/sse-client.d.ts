/**
 * The browser client of sse_middleware: event streams that reconnect and resume automatically.
 *
 * It has three parts, and each can be used alone. `EventParser` reads bytes. `StreamMachine` decides
 * what to do; it does no I/O and receives the time as an argument. `SSEClient` opens the connections
 * and calls the callbacks.
 */

/** The version of the Python package that contains this module. */
export const VERSION: string;

/**
 * `connecting`: the first request is in progress. `connected`: a stream is open. `reconnecting`: the
 * connection is lost, and the next attempt is scheduled or in progress. `disconnected`: no connection
 * is open, and none is scheduled.
 */
export type State = "connecting" | "connected" | "reconnecting" | "disconnected";

/** Details of a state change. */
export interface StateDetail {
  /** The number of consecutive attempts without progress; 0 for a first connection. */
  attempt: number;
  /**
   * `cut`, `ended`, `silence`, `refused`, `shutdown`, `producer_lost`, `stopped`, the reason of a
   * `complete` event, or the code of an error.
   */
  reason?: string;
  /** Milliseconds until the next attempt. */
  delay?: number;
}

/** An event of the app, as received. */
export interface SSEEvent {
  /** Its type; `message` if it has none. */
  event: string;
  /** Its data as text; `onContent` receives the parsed data. */
  data: string;
  /** The last event id after this event; `""` if there is none. */
  id: string;
}

/** The data of the first event on a connection, which is `start` or `reset`. */
export interface Start {
  stream_id: string;
  trace_id: string;
  /** Seconds; null for none. */
  max_duration: number | null;
  /** Seconds; null for none. */
  heartbeat_interval: number | null;
  /** Seconds; null for none. */
  silence_threshold: number | null;
  resumed: boolean;
}

export interface Heartbeat {
  stream_id: string;
  trace_id: string;
  /** ISO 8601, UTC. */
  timestamp: string;
  uptime_seconds: number;
  total_chunks: number;
  total_tokens: number;
  heartbeat_count: number;
  /** Seconds; null for none. */
  remaining_seconds: number | null;
  /** Seconds; null for none. */
  max_duration: number | null;
}

/** How a stream ended. */
export interface Complete {
  /** `finished`, `duration_cap`, `cancelled`, or a reason that a newer server adds. */
  reason: string;
  /** Whether events are missing: true for each reason except `finished`. */
  incomplete: boolean;
  /** The data of the app's own `complete` event, if it sent one. */
  data?: any;
  /** Seconds. */
  duration?: number;
  total_chunks?: number;
  total_tokens?: number;
  stream_id?: string;
  trace_id?: string;
}

/** The previous content must be discarded. `reason` is `gone`, `truncated` or `restarted`. */
export interface Reset {
  reason: string;
}

/** A permanent failure of a stream. */
export class SSEError extends Error {
  constructor(code: string, message: string, more?: object);
  name: "SSEError";
  /**
   * `http`: the server refused the request, see `status`. `gave_up`: too many attempts without
   * progress, see `cause`. `internal_error`: the app failed. An async iterator also throws the reason
   * of an incomplete end, such as `duration_cap`.
   */
  code: string;
  /** The HTTP status, if `code` is `http`. */
  status?: number;
  /** The parsed data of the event, if `code` is `app_error`, which the React hook reports. */
  data?: unknown;
  /** The trace id of the stream in the server's logs. */
  traceId?: string;
  cause?: unknown;
}

export interface MachineOptions {
  /**
   * Seconds without a byte after which a connection counts as lost. The default is the value in `start`,
   * or else 15.
   */
  silenceThreshold?: number;
  /**
   * Consecutive attempts without progress before the client gives up. 3 by default; `Infinity` for
   * no limit. Attempts count only while the page is online and visible.
   */
  maxReconnectAttempts?: number;
  /**
   * Milliseconds before the first attempt, 2000 by default. The delay doubles for each further
   * attempt, up to 30 s, plus a random part of up to half. The server's `retry:` takes precedence. The
   * delay is at least 100 ms, and also doubles while connections last less than half a second, up to
   * this value.
   */
  reconnectDelay?: number;
  /** The server's `SSE_EVENT_PREFIX`. */
  eventPrefix?: string;
}

export interface SSEClientOptions extends MachineOptions {
  /** Absolute, or relative to the page. */
  url: string | URL;
  /**
   * `GET` by default. A `POST` is resumed by a `POST` with the same body, or by a `GET` if the body has
   * more than 1 MiB.
   */
  method?: string;
  /** The body of each request. It is serialised once, so that a form keeps its boundary. */
  body?: BodyInit | null;
  /** Headers, or a function that returns them for each connection, for example with a new token. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** As for `fetch`: `same-origin`, `include` or `omit`. */
  credentials?: RequestCredentials;
  /** A replacement for the global `fetch`. */
  fetch?: (url: URL, request: RequestInit) => Promise<Response>;
  /** A key in `sessionStorage` that keeps the last event id when the page is reloaded. */
  keep?: string;
  /**
   * Whether a reloaded page receives the stream from the beginning, because it has lost its content
   * (true, the default), or only the events that it has not received (false).
   */
  replay?: boolean;
  /** Called for each event of the app. `data` is the parsed JSON, or the text if it is not JSON. */
  onContent?: (data: any, event: SSEEvent) => void;
  /** Called when the stream has ended, completely or not. */
  onComplete?: (complete: Complete) => void;
  /** Called after a permanent failure; the client does not reconnect. */
  onError?: (error: SSEError) => void;
  onHeartbeat?: (heartbeat: Heartbeat) => void;
  /** Called for each change of state, and for each attempt to reconnect. */
  onStateChange?: (state: State, detail: StateDetail) => void;
  /** Called when the content starts again; discard the previous content. */
  onReset?: (reset: Reset) => void;
  /** Called for the first event on each connection. */
  onStart?: (start: Start) => void;
}

/** An item of the async iterator: an event of the app with its parsed data, or a reset. */
export interface StreamItem {
  event: string;
  data: any;
  id: string;
  /** Present if the previous content must be discarded; `data` is then a `Reset`. */
  reset?: true;
}

/**
 * Follow an event stream to its end.
 *
 *     const client = new SSEClient({ url: "/answers", onContent: (data) => show(data) });
 *     client.start();
 */
export class SSEClient implements AsyncIterable<StreamItem> {
  constructor(options: SSEClientOptions);
  readonly state: State;
  readonly traceId: string;
  readonly streamId: string;
  readonly reconnectAttempts: number;
  /** The event id that `start` resumes after; `""` if it starts from the beginning. */
  readonly lastEventId: string;
  /** When the client last received bytes, as returned by `Date.now()`. */
  readonly lastMessageTime: number | undefined;
  /** The last heartbeat. */
  readonly heartbeat: Heartbeat | undefined;
  /** The reason for which the last run failed or ended early. */
  readonly error: SSEError | undefined;
  /**
   * Start, or resume after `stop({cancel: false})`, an error or a reload.
   *
   * If the content starts again, `onReset` is called before its first event.
   */
  start(): void;
  /**
   * Disconnect at once, without further events, timers or listeners.
   *
   * The server also cancels the app's handler, unless `cancel` is false; `start` then resumes the
   * stream while the server keeps it.
   */
  stop(how?: { cancel?: boolean }): void;
  /**
   * Start, and iterate over the events in order. If the loop is slow, the client reads more slowly.
   *
   * @throws SSEError if the stream fails or ends early.
   */
  [Symbol.asyncIterator](): AsyncGenerator<StreamItem, void, undefined>;
}

/** An event as the parser returns it. */
export interface Wire extends SSEEvent {
  /** Whether the event has an `id` line; if not, `id` is from an earlier event. */
  hasId: boolean;
}

/** Parse events from chunks of any size (WHATWG HTML 9.2.6). */
export class EventParser {
  constructor(lastEventId?: string);
  /** The last event id string, with which a client reconnects. */
  lastEventId: string;
  /** The reconnection time in milliseconds, if the stream has set one. */
  retry: number | undefined;
  /**
   * Return the events that the next bytes complete.
   *
   * @throws RangeError if an event is longer than 16 Mi characters.
   */
  feed(bytes: Uint8Array): Wire[];
}

/** An action (`open`, `close` or `cancel`) or the name of a callback, with its arguments. */
export type Effect = [name: string, first?: any, second?: any];

/**
 * The state machine of a client. Each method reports an input and its time (`now`, in milliseconds),
 * and returns the effects to perform, in order.
 *
 * Call `tick` at `deadline`.
 */
export class StreamMachine {
  /** `isAway` returns whether attempts do not count, because the page is offline or hidden. */
  constructor(options?: MachineOptions & { random?: () => number; isAway?: () => boolean });
  state: State;
  deadline: number;
  attempts: number;
  id: string;
  traceId: string;
  streamId: string;
  /** Start, or resume after the event `id`. */
  start(now: number, id?: string): Effect[];
  /** The response is an event stream. */
  opened(now: number): Effect[];
  /** Bytes have arrived; `retry` is the current reconnection time. */
  received(now: number, retry?: number): void;
  /** The response is not an event stream; `retryAfter` is in milliseconds. */
  refused(now: number, status: number, more?: { retryAfter?: number; traceId?: string }): Effect[];
  /** An event has arrived. */
  event(now: number, wire: Wire): Effect[];
  /** The connection is closed, in order by the server (`clean`) or by a failure. */
  ended(now: number, how?: { clean?: boolean; error?: unknown; reason?: string }): Effect[];
  /** The time is `now`; there is an effect only at `deadline` or later. */
  tick(now: number): Effect[];
  /**
   * The network is available, or the page is visible, again. `silence` is the time since the last bytes
   * by a clock that does not stand while the device sleeps.
   */
  wake(now: number, silence?: number): Effect[];
  /** Disconnect. With `cancel`, also cancel the stream on the server and discard its event id. */
  stop(cancel?: boolean): Effect[];
}
