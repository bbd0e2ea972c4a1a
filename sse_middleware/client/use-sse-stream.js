// The client as a hook for React 18 and 19, documented in use-sse-stream.d.ts.
import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { SSEClient, SSEError } from "./sse-client.js";

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
  const isMounted = useRef(false);
  const [status, setStatus] = useState(IDLE);
  useEffect(() => {
    latest.current = options;
  });

  const stop = useCallback((how) => {
    running.current?.client.stop(how);
  }, []);

  const start = useCallback((changes) => {
    const merged = { ...latest.current, ...withoutClickEvent(changes) };
    const { query: _, ...request } = merged; // it is in the url
    const { body } = merged;
    const url = requestUrl(merged);
    const previous = running.current;
    if (previous?.url === url && previous.body === body && continues(previous)) return;
    previous?.client.stop();
    if (previous?.hasContent) latest.current.onReset?.({ reason: "restarted" });
    const run = { url, body, hasContent: false, isLeaving: false };
    const callbacks = wrapCallbacks(() => run === running.current, update, latest);
    const ofText = textCallbacks(callbacks, merged, run);
    const client = (run.client = new SSEClient({ ...request, url, ...callbacks, ...ofText }));
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

  useEffect(() => {
    isMounted.current = true;
    return () => {
      isMounted.current = false;
      const run = running.current;
      if (run) leave(run, () => !isMounted.current, latest);
    };
  }, []);

  return useMemo(() => ({ ...status, start, stop }), [status, start, stop]);
}

// The state of a component outlives its effects, and so does its run: in strict mode and after a
// Fast Refresh, React mounts it again at once, and an `<Activity>` at any later time.
function leave(run, isUnmounted, latest) {
  run.isLeaving = true;
  setTimeout(() => {
    run.isLeaving = false;
    // A client that keeps its event id may resume after a reload, so the app continues.
    if (isUnmounted()) run.client.stop({ cancel: !latest.current.keep });
  });
}

// Whether a run goes on, or resumes, instead of a new one.
function continues({ client, isLeaving }) {
  if (client.state !== "disconnected") return isLeaving;
  if (!client.lastEventId) return false;
  client.start();
  return true;
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

// `onContent` receives text, `onError` the app's own `error`, and `onComplete` the fields of its own
// `complete`, which is no text unless other events follow it.
function textCallbacks({ onContent, onReset, onComplete, onError }, { eventPrefix = "" }, run) {
  let held = [];
  const deliver = ([data, { event, data: text, id }]) => {
    onContent(textIn(data, TEXT_FIELDS) ?? text, { event, data, id });
  };
  return {
    onContent(...content) {
      held.splice(0).forEach(deliver);
      const [data, { event, data: text }] = content;
      if (event === `${eventPrefix}complete`) {
        held.push(content);
      } else if (event === `${eventPrefix}error`) {
        const { traceId } = run.client;
        const message = textIn(data, ERROR_FIELDS) ?? text;
        onError((run.client.error = new SSEError("app_error", message, { data, traceId })));
      } else {
        deliver(content);
      }
    },
    onReset(reset) {
      held = [];
      onReset(reset);
    },
    onComplete(complete) {
      held = [];
      const { data } = complete;
      const fields = typeof data === "object" && !Array.isArray(data) ? data : {};
      onComplete({ ...fields, ...complete });
    },
  };
}

const TEXT_FIELDS = ["content", "text", "delta", "token", "data"];
const ERROR_FIELDS = ["message", "error", "detail", "data"];

function textIn(data, fields, depth = 0) {
  if (typeof data === "string") return data;
  if (typeof data !== "object" || data === null || depth > 2) return undefined;
  for (const field of fields) {
    const text = textIn(data[field], fields, depth + 1);
    if (text !== undefined) return text;
  }
  return undefined;
}

// `onClick={start}` passes the click event, which has no options.
function withoutClickEvent(changes) {
  return changes?.nativeEvent ? {} : changes;
}

function requestUrl({ url = "/stream/search", query }) {
  const address = String(url);
  if (query === undefined) return address;
  const fields = typeof query === "string" ? { query } : query;
  return `${address}${address.includes("?") ? "&" : "?"}${new URLSearchParams(fields)}`;
}
