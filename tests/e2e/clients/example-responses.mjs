// The example's responses: a stream, one in the background that is left and continued, and a stop.

import OpenAI from "openai";
import { base, report } from "./common.mjs";

// Each request may reach another worker.
const addresses = base.split(",");
let requests = 0;
const next = () => {
  const baseURL = `${addresses[requests++ % addresses.length]}/v1`;
  return new OpenAI({ apiKey: "ann", baseURL, maxRetries: 0 }).responses;
};

async function whole(input, dispatch) {
  for await (const event of await next().create({ input, stream: true })) dispatch(event);
  dispatch(await next().create({ input, model: "qwen3-max" }));
}

async function continued(input, dispatch) {
  const stream = await next().create({ input, background: true, stream: true });
  let id, starting_after;
  for await (const event of stream) {
    dispatch(event);
    id ??= event.response.id;
    starting_after = event.sequence_number;
    if (starting_after === 9) break; // closes the connection
  }
  const rest = await next().retrieve(id, { stream: true, starting_after });
  for await (const event of rest) dispatch(event);
}

async function polled(input, dispatch) {
  let response = await next().create({ input, background: true });
  dispatch(response);
  while (["queued", "in_progress"].includes(response.status)) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    response = await next().retrieve(response.id);
  }
  dispatch(response);
}

async function cancelled(input, dispatch) {
  const { id } = await next().create({ input, background: true });
  dispatch(await next().cancel(id));
  dispatch(await next().retrieve(id));
}

const runs = { whole, continued, polled, cancelled };
await report((scenario, dispatch) => runs[scenario](process.env.QUESTION, dispatch));
