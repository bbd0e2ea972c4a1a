// A `fetch` loop on a stream by name, which reads to the end of the response.

import { base, report } from "./common.mjs";

await report(async (name, dispatch) => {
  const headers = { authorization: "Bearer ann" };
  const response = await fetch(`${base}/answers/${name}/live`, { headers });
  const decoder = new TextDecoder();
  for await (const chunk of response.body) dispatch(decoder.decode(chunk, { stream: true }));
  return `ended ${response.status}`;
});
