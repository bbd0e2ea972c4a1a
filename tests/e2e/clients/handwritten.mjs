// A naive parser: split at blank lines, search for `data: `.

import { base, report } from "./common.mjs";

const HEADERS = process.env.ACCEPT ? { accept: process.env.ACCEPT } : {};

await report(async (scenario, dispatch) => {
  const response = await fetch(`${base}/${scenario}/stream`, { headers: HEADERS });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) break;
    buffer += decoder.decode(value, { stream: true });
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) dispatch(part.slice("data: ".length));
    }
  }
  return `ended ${response.status}`;
});
