import { createParser } from "eventsource-parser";
import { base, report } from "./common.mjs";

const HEADERS = process.env.ACCEPT ? { accept: process.env.ACCEPT } : {};

await report(async (scenario, dispatch) => {
  const response = await fetch(`${base}/${scenario}/stream`, { headers: HEADERS });
  const parser = createParser({
    onEvent: dispatch,
    onError: (error) => dispatch({ error: error.type, line: error.line }),
    onRetry: (retry) => dispatch({ retry }),
  });
  const decoder = new TextDecoder();
  for await (const chunk of response.body) parser.feed(decoder.decode(chunk, { stream: true }));
  return `ended ${response.status}`;
});
