// A `fetch` loop that continues an answer by its name until it has ended.

import { createHash } from "node:crypto";
import { base, report } from "./common.mjs";

const QUERY = process.env.QUERY ?? "";
const headers = { authorization: "Bearer ann" };

await report(async (name, dispatch) => {
  const url = `${base}/answers/${name}`;
  const hash = createHash("sha256");
  let events = 0;
  let response = await fetch(`${url}?${QUERY}`, { method: "POST", headers });
  while (response.status === 200) {
    let rest = Buffer.alloc(0);
    try {
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
      response = await fetch(`${url}/live?after=${events}`, { headers });
    }
  }
  return `${response.status} ${hash.digest("hex")}`;
});
