// Uses of the public types. A type checker compiles this file; it never runs.
import { EventParser, SSEClient, SSEError, StreamMachine, VERSION } from "../../sse_middleware/client/sse-client.js";
import type { Complete, Heartbeat, State } from "../../sse_middleware/client/sse-client.js";
import { useSSEStream } from "../../sse_middleware/client/use-sse-stream.js";

const client = new SSEClient({
  url: "/answers",
  headers: async () => ({ authorization: `Bearer ${VERSION}` }),
  onContent: (data: { word: string }, { event, id }) => [data.word, event.length, id.length],
  onComplete: ({ incomplete }: Complete) => void (incomplete satisfies boolean),
  onError: (error) => void (error.status satisfies number | undefined),
  onHeartbeat: (heartbeat: Heartbeat) => heartbeat.uptime_seconds.toFixed(),
  onStateChange: (state, { attempt, delay = 0 }) => void (state satisfies State, attempt + delay),
});
client.stop({ cancel: false });
// @ts-expect-error: `state` is read-only
client.state = "connected";
// @ts-expect-error: `url` is required
new SSEClient({});

export async function words(): Promise<string[]> {
  const found: string[] = [];
  for await (const { data, reset } of client) {
    if (reset) found.length = 0;
    else found.push(data.word);
  }
  return found;
}

const { start, isReconnecting, heartbeat } = useSSEStream({
  query: { q: "a" },
  onContent: (text, { event, data, id }) => [text.length, event.length, data.word, id.length],
});
start({ query: "b" });
void (isReconnecting satisfies boolean, heartbeat?.heartbeat_count satisfies number | undefined);
declare function setAnswer(change: (previous: string) => string): void;
declare function setSources(sources: string[]): void;
declare function setError(error: Error): void;
declare function setHeartbeatData(data: Heartbeat): void;
export function Search() {
  const { start, stop, isConnected, traceId } = useSSEStream({
    query: "What is machine learning?",
    onContent: (content) => setAnswer(prev => prev + content),
    onComplete: (data) => setSources(data.sources),
    onError: (error) => setError(error),
    onHeartbeat: (data) => setHeartbeatData(data),
    silenceThreshold: 15,
    maxReconnectAttempts: 3
  });
  return [start, stop, isConnected satisfies boolean, traceId satisfies string];
}
new EventParser("1").feed(new Uint8Array())[0]?.hasId;
new SSEClient({ url: new URL("https://a.test"), body: new FormData(), maxReconnectAttempts: Infinity });
new StreamMachine({ random: () => 0, isAway: () => true }).start(Date.now())[0]?.[0].length;
throw new SSEError("http", "refused", { status: 404 });
