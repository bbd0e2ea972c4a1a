import { fetchEventSource } from "@microsoft/fetch-event-source";
import { base, report } from "./common.mjs";

// It is written for pages, and checks whether its page is visible.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

// A name with a capital does not replace the header of the package: both values are sent.
const HEADERS = process.env.ACCEPT ? { Accept: process.env.ACCEPT } : {};

await report((scenario, dispatch) => {
  let closed = "";
  return fetchEventSource(`${base}/${scenario}/stream`, {
    headers: HEADERS,
    onmessage: dispatch,
    onclose() {
      closed = "closed";
    },
    onerror(error) {
      throw error; // or it would retry
    },
  }).then(() => closed);
});
