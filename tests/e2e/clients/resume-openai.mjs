// A response in the background; its stream is continued after each cut.

import OpenAI from "openai";
import { base, report } from "./common.mjs";

await report(async (input, dispatch) => {
  const client = new OpenAI({ apiKey: "ann", baseURL: `${base}/v1`, maxRetries: 0 });
  const background = { model: "gpt", input, background: true, stream: true };
  let stream = await client.responses.create(background);
  let id, starting_after, cuts = 0;
  while (true) {
    try {
      for await (const event of stream) {
        dispatch(event);
        id ??= event.response.id;
        starting_after = event.sequence_number;
      }
      return `${cuts} cuts`;
    } catch (error) {
      if (error instanceof OpenAI.OpenAIError || starting_after === undefined) throw error;
      cuts += 1;
      stream = await client.responses.retrieve(id, { stream: true, starting_after });
    }
  }
});
