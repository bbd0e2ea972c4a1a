import { HttpAgent } from "@ag-ui/client";
import { base, report } from "./common.mjs";

await report(async (scenario, dispatch) => {
  const agent = new HttpAgent({ url: `${base}/${scenario}/agent`, threadId: "t1" });
  const subscriber = {
    onEvent: ({ event }) => dispatch(event),
    onRunFailed: ({ error }) => dispatch({ failed: error.message }),
  };
  try {
    await agent.runAgent({ runId: "r1" }, subscriber);
  } finally {
    dispatch({ messages: agent.messages, state: agent.state });
  }
});
