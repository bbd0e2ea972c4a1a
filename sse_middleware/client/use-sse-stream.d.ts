import type { Heartbeat, SSEClientOptions, SSEError, State } from "./sse-client.js";

export interface UseSSEStreamOptions extends Omit<SSEClientOptions, "url"> {
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
 *     const { start, stop, state } = useSSEStream({ query, onContent: (data) => add(data) });
 */
export function useSSEStream(options?: UseSSEStreamOptions): SSEStream;
