import { EventSource } from "eventsource";
import { base, report } from "./common.mjs";
import "./listen.mjs";

await report((scenario, dispatch) => listen(EventSource, `${base}/${scenario}/stream`, dispatch));
