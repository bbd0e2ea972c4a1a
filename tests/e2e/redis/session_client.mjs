// Runs the script of a page (session_page.js) under node, and prints what it has shown as JSON.
// Usage: node session_client.mjs ADDRESS REQUEST, where REQUEST replaces fields of the page's own.
import { readFileSync } from "node:fs";
import { runInThisContext } from "node:vm";

const [address, request] = process.argv.slice(2);
const shown = { lines: [], errors: [] };
const elements = {};
const fetchFromServer = globalThis.fetch;

globalThis.document = { getElementById: (id) => (elements[id] ??= { textContent: "" }) };
globalThis.fetch = (path, options) => {
  const body = JSON.stringify({ ...JSON.parse(options.body), ...JSON.parse(request) });
  return fetchFromServer(address + path, { ...options, body });
};
console.log = (...words) => shown.lines.push(words.join(" "));
console.error = (...words) => shown.errors.push(words);
process.on("exit", () => {
  const texts = Object.entries(elements).map(([id, { textContent }]) => [id, textContent]);
  process.stdout.write(JSON.stringify({ ...shown, ...Object.fromEntries(texts) }));
});

runInThisContext(readFileSync(new URL("session_page.js", import.meta.url), "utf8"));
