import type { Complete, Heartbeat, SSEClientOptions, SSEError, State, StreamItem } from "./sse-client.js";

/** How a stream ended, with the fields of the app's own `complete` event, if its data are an object. */
export interface CompleteWithFields extends Complete {
  [field: string]: any;
}

export interface UseSSEStreamOptions extends Omit<SSEClientOptions, "url" | "onContent" | "onComplete" | "onError"> {
  /**
   * Called for each event of the app with its text: the data if they are text, else their first text in a
   * field `content`, `text`, `delta`, `token` or `data`, else the data as received. `item` has the parsed
   * data. A `complete` event of the app that no other event follows is passed to `onComplete` instead.
   */
  onContent?: (text: string, item: StreamItem) => void;
  /**
   * Called after a permanent failure; and for each `error` event of the app, with the code `app_error`,
   * its text as the message and its parsed data as `data`.
   */
  onError?: (error: SSEError) => void;
  /** Called when the stream has ended, completely or not. */
  onComplete?: (complete: CompleteWithFields) => void;
  /** `/stream/search` by default. */
  url?: string | URL;
  /** Parameters added to `url`, or the value of one parameter named `query`. */
  query?: string | Record<string, string>;
}

export interface SSEStream {
  /**
   * Start, after stopping the current stream. A stream that was stopped with `{cancel: false}`, or
   * failed, resumes if its address and body are the same. `changes` override the options of the hook.
   */
  start: (changes?: UseSSEStreamOptions | unknown) => void;
  /** Disconnect at once; the server also cancels the app's handler, unless `cancel` is false. */
  stop: (how?: { cancel?: boolean } | unknown) => void;
  isConnected: boolean;
  isReconnecting: boolean;
  /** Consecutive attempts without progress. */
  reconnectAttempts: number;
  /** When the client last received bytes, as returned by `Date.now()`. */
  lastMessageTime: number | undefined;
  state: State;
  traceId: string;
  /** The last heartbeat. */
  heartbeat: Heartbeat | undefined;
  error: SSEError | undefined;
}

/**
 * Follow an event stream from a component, in React 18 and 19.
 *
 * A connection opens when `start` is called, and closes when the component unmounts. If React mounts the
 * component again at once, as in strict mode, `start` continues the stream. Options and
 * callbacks are taken from the latest render and do not have to be memoized.
 *
 *     const { start, stop, state } = useSSEStream({ query, onContent: (text) => add(text) });
 */
export function useSSEStream(options?: UseSSEStreamOptions): SSEStream;
