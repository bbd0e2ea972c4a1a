// Mistakes in the options: each message has the value, what is allowed, and the remedy.
import assert from "node:assert/strict";
import { test } from "node:test";
import { SSEClient } from "../../sse_middleware/client/sse-client.js";

const MISTAKES = {
  "an address in place of options": [
    "/answers",
    'options is "/answers", allowed is an object: new SSEClient({ url: "/" })',
  ],
  "no options": [undefined, "options is undefined, allowed is an object: "],
  "an option that does not exist": [
    { url: "/", onMessage() {} },
    "no such option: onMessage; there are: url, method, body, headers, credentials, keep, ",
  ],
  "a misspelled option": [{ url: "/", maxReconnects: 3 }, "no such option: maxReconnects; there are: "],
  "another name of the address": [{ uri: "/answers" }, "no such option: uri; there are: url, "],
  "no address": [{}, "url is undefined, allowed is an address, or a path such as /answers"],
  "a number in quotes": [
    { url: "/", reconnectDelay: "2000" },
    'reconnectDelay is "2000", allowed is a number',
  ],
  "a name in place of a function": [
    { url: "/", onContent: "show" },
    'onContent is "show", allowed is a function',
  ],
  "a body of a GET": [
    { url: "/", body: "{}" },
    'method is "GET", allowed is one that sends the body: method: "POST"',
  ],
  "an object as the body": [
    { url: "/", method: "POST", body: { question: "why" } },
    'body is {"question":"why"}, allowed is a text, a form or bytes: JSON.stringify(body)',
  ],
  "a list as the body": [{ url: "/", method: "POST", body: [1] }, "body is [1], allowed is a text, "],
};

for (const [mistake, [options, message]] of Object.entries(MISTAKES)) {
  test(`${mistake} is explained`, () => {
    assert.throws(
      () => new SSEClient(options),
      (error) => error instanceof TypeError && error.message.startsWith(message),
      message,
    );
  });
}

test("options that are undefined or null count as absent", () => {
  new SSEClient({ url: "/", onContent: undefined, reconnectDelay: undefined, body: null });
});
