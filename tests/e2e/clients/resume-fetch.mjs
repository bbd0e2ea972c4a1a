// A `fetch` loop that continues an answer until it has ended: by the name of the answer, or, if that
// begins with `id`, by the id of its stream.

import { createHash } from "node:crypto";
import { base, report } from "./common.mjs";

const QUERY = process.env.QUERY ?? "";

await report(async (name, dispatch) => {
  const url = `${base}/answers/${name}`;
  const hash = createHash("sha256");
  const headers = { authorization: "Bearer ann" };
  let events = 0;
  let response = await fetch(`${url}?${QUERY}`, { method: "POST", headers });
  if (name.startsWith("id")) headers["x-stream-id"] = response.headers.get("x-stream-id");
  while (true) {
    let rest = Buffer.alloc(0);
    try {
      response ??= await fetch(`${url}/live?after=${events}`, { headers });
      if (response.status !== 200) return `${response.status} ${hash.digest("hex")}`;
      for await (const chunk of response.body) {
        rest = Buffer.concat([rest, chunk]);
        for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.subarray(end + 2)) {
          const event = rest.subarray(0, end + 2);
          dispatch(event.toString());
          hash.update(event);
          events += 1;
        }
      }
      return `done ${hash.digest("hex")}`;
    } catch {
      response = undefined;
    }
  }
});
