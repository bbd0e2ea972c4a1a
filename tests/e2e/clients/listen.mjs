// All events that an EventSource dispatches, until the first error after `done`, or an error after
// which it does not reconnect.

const NAMES = ["message", "named", "done", "start", "heartbeat", "complete"];

globalThis.listen = (EventSource, url, dispatch) =>
  new Promise((resolve) => {
    const source = new EventSource(url);
    let done = false;
    const keep = (event) => {
      done ||= event.type === "done";
      dispatch({ type: event.type, data: event.data, id: event.lastEventId });
    };
    for (const name of NAMES) source.addEventListener(name, keep);
    source.addEventListener("error", (event) => {
      if (event.data !== undefined) return keep(event);
      const state = ["connecting", "open", "closed"][source.readyState];
      if (!done && state !== "closed") return dispatch({ type: `error, ${state}` });
      source.close();
      resolve(`${state} ${event.code ?? ""}`);
    });
  });
