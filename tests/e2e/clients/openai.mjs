import OpenAI from "openai";
import { base, report } from "./common.mjs";

const messages = [{ role: "user", content: "?" }];

await report(async (model, dispatch) => {
  const baseURL = `${base}/${model}/v1`;
  const client = new OpenAI({ apiKey: "none", baseURL, maxRetries: 0 });
  const stream = await client.chat.completions.create({ model, messages, stream: true });
  for await (const chunk of stream) dispatch(chunk);
});
