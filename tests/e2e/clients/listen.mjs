// An EventSource, native or not: all that it dispatches, until the first error behind `done`, or
// one after which it does not come back.

const NAMES = ["message", "named", "done", "start", "heartbeat", "complete"];

globalThis.listen = (EventSource, url, dispatch) =>
  new Promise((resolve) => {
    const source = new EventSource(url);
    let done = false;
    const tell = (event) => {
      done ||= event.type === "done";
      dispatch({ type: event.type, data: event.data, id: event.lastEventId });
    };
    for (const name of NAMES) source.addEventListener(name, tell);
    source.addEventListener("error", (event) => {
      if (event.data !== undefined) return tell(event);
      const state = ["connecting", "open", "closed"][source.readyState];
      if (!done && state !== "closed") return dispatch({ type: `error, ${state}` });
      source.close();
      resolve(`${state} ${event.code ?? ""}`);
    });
  });
