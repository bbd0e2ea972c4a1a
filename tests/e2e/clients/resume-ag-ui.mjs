// A run of an agent that is cut, and the same thread in a page that has been reloaded.

import { HttpAgent, runHttpRequest, transformHttpEventStream } from "@ag-ui/client";
import { base, report } from "./common.mjs";

// If a response is cut, the package also rejects a promise of its own that nobody awaits.
process.on("unhandledRejection", () => {});

const QUERY = process.env.QUERY ?? "";
const headers = { authorization: "Bearer ann" };

class ResumableAgent extends HttpAgent {
  connect(input) {
    const live = `${base}/agents/${input.threadId}/live`;
    return transformHttpEventStream(runHttpRequest(() => fetch(live, { headers: this.headers })));
  }
}

await report(async (threadId, dispatch) => {
  const subscriber = {
    onEvent: ({ event }) => dispatch(event),
    onRunFailed: ({ error }) => dispatch({ failed: error.message }),
  };
  const options = { url: `${base}/agents?${QUERY}`, threadId, headers };
  try {
    await new ResumableAgent(options).runAgent({ runId: "r1" }, subscriber);
    return "not cut";
  } catch {
    dispatch({ connects: true });
  }
  const agent = new ResumableAgent(options);
  await agent.connectAgent({ runId: "r2" }, subscriber);
  dispatch({ messages: agent.messages, state: agent.state });
});
