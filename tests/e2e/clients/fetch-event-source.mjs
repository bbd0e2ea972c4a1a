import { fetchEventSource } from "@microsoft/fetch-event-source";
import { base, tell } from "./common.mjs";

// It is written for pages, and asks a page whether it is seen.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

// Given with a capital it stands beside the package's own, as `text/event-stream, ...`.
const HEADERS = process.env.ACCEPT ? { Accept: process.env.ACCEPT } : {};

await tell((scenario, dispatch) => {
  let closed = "";
  return fetchEventSource(`${base}/${scenario}/stream`, {
    headers: HEADERS,
    onmessage: dispatch,
    onclose() {
      closed = "closed";
    },
    onerror(error) {
      throw error; // else it tries again
    },
  }).then(() => closed);
});
