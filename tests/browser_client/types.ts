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

const { start, isReconnecting, heartbeat } = useSSEStream({ query: { q: "a" }, silenceThreshold: 5000 });
start({ query: "b" });
void (isReconnecting satisfies boolean, heartbeat?.heartbeat_count satisfies number | undefined);
new EventParser("1").feed(new Uint8Array())[0]?.hasId;
new SSEClient({ url: new URL("https://a.test"), body: new FormData(), maxReconnectAttempts: Infinity });
new StreamMachine({ random: () => 0, isAway: () => true }).start(Date.now())[0]?.[0].length;
throw new SSEError("http", "refused", { status: 404 });
