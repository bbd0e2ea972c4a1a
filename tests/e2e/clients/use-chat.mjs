// A chat of the AI SDK in React, which resumes the answer of its chat when it is mounted.

import { useChat } from "@ai-sdk/react";
import { StrictMode, createElement, useState } from "react";
import { createRoot } from "react-dom/client";
import { ResumableTransport } from "transport"; // of docs/browser.md

function Chat({ id, pace, messages }) {
  const paced = (url, init) => fetch(init.method === "POST" ? url + pace : url, init);
  const [transport] = useState(() => new ResumableTransport({ api: "/api/chat", fetch: paced }));
  window.chat = useChat({ id, messages, resume: true, transport });
  return createElement("p", null, chat.status);
}

window.answers = () =>
  chat.messages
    .filter(({ role }) => role === "assistant")
    .map(({ parts }) => parts.map(({ text }) => text ?? "").join(""));

window.mount = (options) =>
  createRoot(document.querySelector("#root")).render(
    createElement(StrictMode, null, createElement(Chat, options)),
  );
window.ready = true;
