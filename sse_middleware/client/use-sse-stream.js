// A React hook (18 and 19) around the client; all is told in use-sse-stream.d.ts.
/** @import * as T from "./use-sse-stream.js" */
import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { SSEClient } from "./sse-client.js";

const IDLE = {
  state: "disconnected",
  isConnected: false,
  isReconnecting: false,
  reconnectAttempts: 0,
  lastMessageTime: undefined,
  traceId: "",
  heartbeat: undefined,
  error: undefined,
};

/** @type {typeof T.useSSEStream} */
export function useSSEStream(options = {}) {
  const latest = useRef(options);
  const running = useRef(null);
  const [told, setTold] = useState(IDLE);
  useEffect(() => {
    latest.current = options;
  });

  const stop = useCallback((how) => {
    running.current?.client.stop(how);
  }, []);

  const start = useCallback((changes) => {
    const wanted = { ...latest.current, ...own(changes) };
    const { body } = wanted;
    const url = address(wanted);
    const before = running.current;
    const isSame = before?.url === url && before.body === body;
    if (isSame && before.client.state === "disconnected" && before.client.lastEventId) {
      before.client.start(); // goes on
      return;
    }
    before?.client.stop();
    if (before?.hasContent) latest.current.onReset?.({ reason: "restarted" });
    const mine = { url, body, hasContent: false };
    const callbacks = heard(() => mine === running.current, tell, latest);
    const client = (mine.client = new SSEClient({ ...wanted, url, ...callbacks }));
    running.current = mine;
    client.start();

    function tell(name) {
      if (name === "onContent") mine.hasContent = true;
      const { state, reconnectAttempts, lastMessageTime, traceId, heartbeat, error } = client;
      setTold({
        state,
        isConnected: state === "connected",
        isReconnecting: state === "reconnecting",
        reconnectAttempts,
        lastMessageTime,
        traceId,
        heartbeat,
        error,
      });
    }
  }, []);

  useEffect(
    () => () => {
      // Whoever keeps a cursor may come back for the rest; nobody else can.
      running.current?.client.stop({ cancel: !latest.current.keep });
      running.current = null;
    },
    [],
  );

  return useMemo(() => ({ ...told, start, stop }), [told, start, stop]);
}

const CALLBACKS = [
  "onStart",
  "onContent",
  "onReset",
  "onHeartbeat",
  "onComplete",
  "onError",
  "onStateChange",
];

// Each callback is that of the newest render, and nothing is heard of a client that was replaced.
function heard(isCurrent, tell, latest) {
  const through = (name) => [
    name,
    (...rest) => {
      if (!isCurrent()) return;
      tell(name);
      latest.current[name]?.(...rest);
    },
  ];
  return Object.fromEntries(CALLBACKS.map(through));
}

// A button's `onClick={start}` brings its event.
function own(changes) {
  return changes?.nativeEvent ? {} : changes;
}

function address({ url = "/stream/search", query }) {
  if (query === undefined) return url;
  const fields = typeof query === "string" ? { query } : query;
  return `${url}${url.includes("?") ? "&" : "?"}${new URLSearchParams(fields)}`;
}
