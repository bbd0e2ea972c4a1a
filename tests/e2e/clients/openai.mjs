import OpenAI from "openai";
import { base, tell } from "./common.mjs";

const messages = [{ role: "user", content: "?" }];

await tell(async (model, dispatch) => {
  const baseURL = `${base}/${model}/v1`;
  const client = new OpenAI({ apiKey: "none", baseURL, maxRetries: 0 });
  const stream = await client.chat.completions.create({ model, messages, stream: true });
  for await (const chunk of stream) dispatch(chunk);
});
