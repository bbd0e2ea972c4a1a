// A worker in another language, which uses only commands of Redis: BLPOP for jobs, PUBLISH for events.
// Usage: node session_worker.mjs PORT
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

const port = Number(process.argv[2]);

function open() {
  const socket = connect(port, "127.0.0.1");
  let text = "";
  let resolve;
  socket.setEncoding("utf8").on("data", (data) => {
    text += data;
    // An integer, or an array of two texts: all replies that this worker gets.
    const found = text.match(/^:(\d+)\r\n/) ?? text.match(/^\*2\r\n\$4\r\n.*\r\n\$\d+\r\n(.*)\r\n/);
    if (found) {
      text = "";
      resolve(found[1]);
    }
  });
  return (...words) => {
    const parts = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`);
    socket.write(`*${words.length}\r\n${parts.join("")}`);
    return new Promise((done) => (resolve = done));
  };
}

const take = open();
const send = open();

async function work({ session_id, user_query }) {
  const publish = (event_type, payload) =>
    send("PUBLISH", `sse_session:${session_id}`, JSON.stringify({ event_type, payload }));
  while ((await publish("worker_ack", {})) === "0") await sleep(5);
  for (const char of `I think: ${user_query}`) await publish("AgentThoughtStream", { char });
  await publish("AgentToolCallStart", { tool_name: "weather" });
  for (const char of "Paris, and it is sunny ☀.") await publish("FinalAnswerStream", { char });
  await publish("FinalAnswerStreamEnd", {});
}

process.stdout.write("The worker is ready\n");
while (true) await work(JSON.parse(await take("BLPOP", "jobs", "0")));
