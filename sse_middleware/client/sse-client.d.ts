/**
 * Event streams that come back by themselves: the browser's half of sse_middleware.
 *
 * Three parts, each of which can be used alone: `EventParser` reads bytes, `StreamMachine` decides
 * (it does no I/O and is told the time), and `SSEClient` does what it says.
 */

/** The version of the Python package that this module belongs to. */
export const VERSION: string;

/**
 * `connecting`: asked for the first time. `connected`: an answer streams. `reconnecting`: the
 * connection is lost, and another will be or is being opened. `disconnected`: there is none.
 */
export type State = "connecting" | "connected" | "reconnecting" | "disconnected";

/** Why a state was entered. */
export interface StateDetail {
  /** How many attempts without progress this is; 0 in a first connection. */
  attempt: number;
  /** `cut`, `ended`, `silence`, `refused`, `shutdown`, `producer_lost`, `stopped`, a `complete`'s or an error's. */
  reason?: string;
  /** Milliseconds until the next attempt. */
  delay?: number;
}

/** An event of the app's, as it came. */
export interface SSEEvent {
  /** Its type, `message` where it names none. */
  event: string;
  /** Its text; `onContent` has it parsed. */
  data: string;
  /** The last event id behind it, `""` where there is none. */
  id: string;
}

/** What the server says first: that of `start`, or of the `reset` in its place. */
export interface Start {
  stream_id: string;
  trace_id: string;
  /** Seconds; null: none. */
  max_duration: number | null;
  heartbeat_interval: number | null;
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
  /** Null: there is no limit. */
  remaining_seconds: number | null;
  max_duration: number | null;
}

/** How a stream has ended, with what the server says of it. */
export interface Complete {
  /** `finished`, `duration_cap`, `cancelled`, or what a newer server says. */
  reason: string;
  /** Whether more was to come: true for all but `finished`. */
  incomplete: boolean;
  /** The data of the app's own `complete`, where it has sent one. */
  data?: any;
  /** Seconds. */
  duration?: number;
  total_chunks?: number;
  total_tokens?: number;
  stream_id?: string;
  trace_id?: string;
}

/** Why what came is to be thrown away: `gone` or `truncated` by the server, or `restarted`. */
export interface Reset {
  reason: string;
}

/** Why a stream has failed for good. */
export class SSEError extends Error {
  constructor(code: string, message: string, more?: object);
  name: "SSEError";
  /**
   * `http`: refused, see `status`. `gave_up`: as often as it may be tried, see `cause`.
   * `internal_error`: the app has failed. What an async iterator throws at an early end: its reason.
   */
  code: string;
  /** The HTTP status of a refusal. */
  status?: number;
  /** By which operators find the stream in their logs. */
  traceId?: string;
  cause?: unknown;
}

export interface MachineOptions {
  /** Milliseconds of silence behind which a connection is lost; else what `start` says, else 15 000. */
  silenceThreshold?: number;
  /** Attempts without progress, behind which it gives up; 3, `Infinity`: never. */
  maxReconnectAttempts?: number;
  /**
   * Milliseconds before the first attempt, 2000; twice as long before each further one, up to 30 s,
   * and up to half as long again by chance. The server's `retry:` goes before.
   */
  reconnectDelay?: number;
  /** The server's `SSE_EVENT_PREFIX`. */
  eventPrefix?: string;
}

export interface SSEClientOptions extends MachineOptions {
  /** Absolute, or relative to the page. */
  url: string | URL;
  /** `GET`; a `POST` is resumed by a `POST` with the same body. */
  method?: string;
  /** Of a kind that can be sent twice: no stream. */
  body?: string | Blob | ArrayBuffer | FormData | URLSearchParams;
  /** Headers, or a function that is asked at each connection, such as for a fresh token. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** As for `fetch`: `same-origin`, `include` or `omit`. */
  credentials?: RequestCredentials;
  /** In place of the global one. */
  fetch?: (url: URL, request: RequestInit) => Promise<Response>;
  /** Keep the cursor over a reload of the page, in sessionStorage under this name. */
  keep?: string;
  /**
   * Whether a page that was loaded again is given the stream from its beginning, which it has not
   * any more (true), or just what it has missed (false).
   */
  replay?: boolean;
  /** Hear of each event of the app's. `data` is parsed JSON, or the text where it is none. */
  onContent?: (data: any, event: SSEEvent) => void;
  /** Hear that the stream has ended. */
  onComplete?: (complete: Complete) => void;
  /** Hear that it has failed, and is not tried again. */
  onError?: (error: SSEError) => void;
  onHeartbeat?: (heartbeat: Heartbeat) => void;
  /** Hear of each state, and of each attempt. */
  onStateChange?: (state: State, detail: StateDetail) => void;
  /** Throw away what came: the answer begins anew. */
  onReset?: (reset: Reset) => void;
  /** Hear what the server says first on each connection. */
  onStart?: (start: Start) => void;
}

/** What an async iterator gives: an event of the app's with its parsed data, or a reset. */
export interface StreamItem {
  event: string;
  data: any;
  id: string;
  /** Whether what came is to be thrown away; `data` is a `Reset`. */
  reset?: true;
}

/**
 * Follow an event stream until it is whole.
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
  /** What `start` would go on behind, `""` where it would begin. */
  readonly lastEventId: string;
  /** When the server has last sent anything, in milliseconds as `Date.now()` tells it. */
  readonly lastMessageTime: number | undefined;
  /** The last one. */
  readonly heartbeat: Heartbeat | undefined;
  /** Why the last run has failed, or ended early. */
  readonly error: SSEError | undefined;
  /**
   * Begin, or go on with what was left by `stop({cancel: false})`, an error or a reload.
   *
   * What a client begins anew behind an answer that it had is told by `onReset`.
   */
  start(): void;
  /**
   * End now. Nothing is heard any more, and no timer or listener is left.
   *
   * The app is ended too, unless `cancel` is false: then `start` goes on with the stream, for as
   * long as the server keeps it.
   */
  stop(how?: { cancel?: boolean }): void;
  /**
   * Start, and give each event in order. Whoever takes them slowly is sent them slowly.
   *
   * @throws SSEError where the stream fails or ends before its time.
   */
  [Symbol.asyncIterator](): AsyncGenerator<StreamItem, void, undefined>;
}

/** An event as the parser reads it. */
export interface Wire extends SSEEvent {
  /** Whether its block has an `id` line; else `id` is that of an earlier one. */
  hasId: boolean;
}

/** Read events from bytes that are cut anywhere, as WHATWG HTML 9.2.6 says. */
export class EventParser {
  constructor(lastEventId?: string);
  /** The last event id string, which a client comes back with. */
  lastEventId: string;
  /** The reconnection time in milliseconds, where the stream has set one. */
  retry: number | undefined;
  /**
   * Take the next bytes, and return the events that they complete.
   *
   * @throws RangeError where an event is longer than 16 Mi characters.
   */
  feed(bytes: Uint8Array): Wire[];
}

/** What is to be done (`open`, `close`, `cancel`) or told (a callback's name), and with what. */
export type Effect = [what: string, first?: any, second?: any];

/**
 * Decide what is to be done, from what has happened and when (`now`, in milliseconds).
 *
 * Each method returns what to do, in order. `tick` is due at `deadline`.
 */
export class StreamMachine {
  constructor(options?: MachineOptions & { random?: () => number });
  state: State;
  deadline: number;
  attempts: number;
  id: string;
  traceId: string;
  streamId: string;
  /** Begin, or go on behind the event `id`. */
  start(now: number, id?: string): Effect[];
  /** Hear that the answer is a stream. */
  opened(now: number): Effect[];
  /** Hear a sign of life, and the `retry` that is known by now. */
  heard(now: number, retry?: number): void;
  /** Hear that the answer is none; `retryAfter` in milliseconds. */
  refused(now: number, status: number, more?: { retryAfter?: number; traceId?: string }): Effect[];
  /** Take an event. */
  event(now: number, wire: Wire): Effect[];
  /** Hear that the connection is over: by the server and in order (`clean`), or by a cut. */
  ended(now: number, how?: { clean?: boolean; offline?: boolean; error?: unknown; reason?: string }): Effect[];
  /** Hear what the time is. */
  tick(now: number): Effect[];
  /** Hear that now is a good moment: the network, or whoever reads, is back. */
  wake(now: number): Effect[];
  /** End; with `cancel` the server is told, and there is nothing left to go on with. */
  stop(cancel?: boolean): Effect[];
}
