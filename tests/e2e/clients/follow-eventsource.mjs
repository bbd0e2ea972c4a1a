// An EventSource on a stream by name, with the events and the errors that its page receives.

import { EventSource } from "eventsource";
import { base, report } from "./common.mjs";

function asPage(url, init) {
  const headers = new Headers(init.headers);
  headers.set("authorization", "Bearer ann");
  headers.set("accept", "text/event-stream;events=named");
  return fetch(url, { ...init, headers });
}

await report((name, dispatch) => {
  const source = new EventSource(`${base}/answers/${name}/live`, { fetch: asPage });
  return new Promise((resolve) => {
    source.onmessage = (event) => dispatch(event.data);
    source.addEventListener("complete", (event) => end("complete", event));
    source.addEventListener("error", (event) => event.data && end("error", event));
    function end(name, event) {
      source.close();
      resolve(`${name} ${event.data}`);
    }
  });
});
