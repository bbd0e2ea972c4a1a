import type { Heartbeat, SSEClientOptions, SSEError, State } from "./sse-client.js";

export interface UseSSEStreamOptions extends Omit<SSEClientOptions, "url"> {
  /** `/stream/search` by default. */
  url?: string;
  /** Added to the address: fields, or the text of the one that is called `query`. */
  query?: string | Record<string, string>;
}

export interface SSEStream {
  /** Begin; what runs is stopped. `changes` go before what the hook was given. */
  start: (changes?: UseSSEStreamOptions | unknown) => void;
  /** End now, on the server too unless `cancel` is false. */
  stop: (how?: { cancel?: boolean } | unknown) => void;
  isConnected: boolean;
  isReconnecting: boolean;
  /** Attempts without progress since the connection was lost. */
  reconnectAttempts: number;
  /** Milliseconds, as `Date.now()` tells them. */
  lastMessageTime: number | undefined;
  state: State;
  traceId: string;
  /** The last one. */
  heartbeat: Heartbeat | undefined;
  error: SSEError | undefined;
}

/**
 * Follow an event stream from a component, in React 18 and 19.
 *
 * Nothing is opened before `start` is called, and nothing is left open when the component goes.
 * Callbacks are those of the newest render; they need not be memoized, and neither do the options.
 *
 *     const { start, stop, state } = useSSEStream({ query, onContent: (data) => add(data) });
 */
export function useSSEStream(options?: UseSSEStreamOptions): SSEStream;
