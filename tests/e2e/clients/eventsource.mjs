import { EventSource } from "eventsource";
import { base, tell } from "./common.mjs";
import "./listen.mjs";

await tell((scenario, dispatch) => listen(EventSource, `${base}/${scenario}/stream`, dispatch));
