// The client as a hook for React 18 and 19, documented in use-sse-stream.d.ts.
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

export function useSSEStream(options = {}) {
  const latest = useRef(options);
  const running = useRef(null);
  const [status, setStatus] = useState(IDLE);
  useEffect(() => {
    latest.current = options;
  });

  const stop = useCallback((how) => {
    running.current?.client.stop(how);
  }, []);

  const start = useCallback((changes) => {
    const merged = { ...latest.current, ...withoutClickEvent(changes) };
    const { body } = merged;
    const url = requestUrl(merged);
    const previous = running.current;
    const isSame = previous?.url === url && previous.body === body;
    if (isSame && previous.client.state === "disconnected" && previous.client.lastEventId) {
      previous.client.start(); // resumes
      return;
    }
    previous?.client.stop();
    if (previous?.hasContent) latest.current.onReset?.({ reason: "restarted" });
    const run = { url, body, hasContent: false };
    const callbacks = wrapCallbacks(() => run === running.current, update, latest);
    const client = (run.client = new SSEClient({ ...merged, url, ...callbacks }));
    running.current = run;
    client.start();

    function update(name) {
      if (name === "onContent") run.hasContent = true;
      const { state, reconnectAttempts, lastMessageTime, traceId, heartbeat, error } = client;
      setStatus({
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
      // A client that keeps its event id may resume after a reload, so the app continues.
      running.current?.client.stop({ cancel: !latest.current.keep });
      running.current = null;
    },
    [],
  );

  return useMemo(() => ({ ...status, start, stop }), [status, start, stop]);
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

// Calls the callback of the latest render, and ignores calls of a client that was replaced.
function wrapCallbacks(isCurrent, update, latest) {
  const wrap = (name) => [
    name,
    (...args) => {
      if (!isCurrent()) return;
      update(name);
      latest.current[name]?.(...args);
    },
  ];
  return Object.fromEntries(CALLBACKS.map(wrap));
}

// `onClick={start}` passes the click event, which has no options.
function withoutClickEvent(changes) {
  return changes?.nativeEvent ? {} : changes;
}

function requestUrl({ url = "/stream/search", query }) {
  if (query === undefined) return url;
  const fields = typeof query === "string" ? { query } : query;
  return `${url}${url.includes("?") ? "&" : "?"}${new URLSearchParams(fields)}`;
}
