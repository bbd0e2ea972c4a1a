// A chat of the AI SDK in React, which resumes the answer of its chat when it is mounted.

import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { StrictMode, createElement, useState } from "react";
import { createRoot } from "react-dom/client";

// After a cut, `resumeStream` adds to the message that it has, so that it must not begin again.
class ResumableTransport extends DefaultChatTransport {
  #received = 0;
  #isCut = false;

  constructor(options) {
    super({
      ...options,
      prepareReconnectToStreamRequest: ({ api, id }) => ({
        api: `${api}/${id}/stream${this.#isCut ? `?after=${this.#received}` : ""}`,
      }),
    });
  }

  processResponseStream(stream) {
    const chunks = super.processResponseStream(stream).getReader();
    this.#received = this.#isCut ? this.#received : 0;
    this.#isCut = false;
    return new ReadableStream({
      pull: async (controller) => {
        try {
          const { done, value } = await chunks.read();
          if (done) return controller.close();
          this.#received += 1;
          controller.enqueue(value);
        } catch (error) {
          this.#isCut = error.name !== "AbortError";
          controller.error(error);
        }
      },
      cancel: (reason) => chunks.cancel(reason),
    });
  }
}

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
