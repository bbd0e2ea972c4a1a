// The strip: the last seconds of a connection as a seismograph would write them.
//
// It keeps what it draws and nothing else: when the state has changed, and when each event has arrived.

const PIXELS_A_SECOND = 45;
const LONGEST_SECONDS = 20;
const BURST = 5;
const AT_ONCE_MS = 40;
const STEP_MS = 50;
const STEP_MS_WITHOUT_MOTION = 1000;

/** Draw on `canvas` until it is stopped. */
export class Strip {
  #canvas;
  #states = [{ at: -Infinity, state: "disconnected" }];
  #stood = performance.now();
  #marks = [];
  #timer = 0;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Note that the connection is in another state; a strip at rest stands still. */
  state(state) {
    this.#stood = performance.now();
    this.#states.push({ at: this.#stood, state });
    clearInterval(this.#timer);
    if (state !== "disconnected") {
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.#timer = setInterval(() => this.draw(), calm ? STEP_MS_WITHOUT_MOTION : STEP_MS);
    }
    this.draw();
  }

  /** Note that a "word" or a "beat" has come. */
  mark(kind) {
    this.#marks.push({ at: performance.now(), kind });
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const now = this.#states.at(-1).state === "disconnected" ? this.#stood : performance.now();
    const seconds = Math.min(width / PIXELS_A_SECOND, LONGEST_SECONDS);
    const since = now - seconds * 1000;
    this.#marks = this.#marks.filter((mark) => mark.at >= since);
    while (this.#states.length > 1 && this.#states[1].at <= since) this.#states.shift();
    const scale = devicePixelRatio;
    this.#canvas.width = width * scale;
    this.#canvas.height = height * scale;
    const pen = this.#canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(this.#canvas);
    const color = (name) => style.getPropertyValue(`--${name}`);
    const x = (at) => Math.round(((at - since) / (now - since)) * width) + 0.5;
    const middle = Math.round(height / 2);

    pen.strokeStyle = color("grid");
    for (let second = 1; second < seconds; second++) line(pen, x(now - second * 1000), 0, height);
    for (const [index, { at, state }] of this.#states.entries()) {
      const from = x(Math.max(at, since));
      const to = x(this.#states[index + 1]?.at ?? now);
      band(pen, state, color(state), from, to, middle);
    }
    this.#writeBursts(pen, x, middle - height * 0.2 - 5, color("word"));
    for (const { at, kind } of this.#marks) {
      const size = kind === "beat" ? height * 0.38 : height * 0.2;
      pen.strokeStyle = color(kind);
      pen.lineWidth = kind === "beat" ? 3 : 1.5;
      line(pen, x(at), middle - size, middle + size);
      if (kind === "beat") dot(pen, x(at), middle - size, color(kind));
    }
  }

  /** Return how many words have arrived at once, as they do after a gap. */
  #writeBursts(pen, x, y, color) {
    const words = this.#marks.filter(({ kind }) => kind === "word");
    pen.fillStyle = color;
    pen.font = "600 12px system-ui, sans-serif";
    for (let from = 0, to; from < words.length; from = to) {
      for (to = from + 1; to < words.length && words[to].at - words[from].at < AT_ONCE_MS; ) to++;
      if (to - from >= BURST) pen.fillText(`+${to - from}`, x(words[from].at) - 9, y);
    }
  }
}

function line(pen, x, from, to) {
  pen.beginPath();
  pen.moveTo(x, from);
  pen.lineTo(x, to);
  pen.stroke();
}

function dot(pen, x, y, color) {
  pen.fillStyle = color;
  pen.beginPath();
  pen.arc(x, y, 4, 0, 7);
  pen.fill();
}

/** A state by its colour and by its shape: a line, dashes, a jagged gap, or hardly anything. */
function band(pen, state, color, from, to, y) {
  if (to <= from) return;
  pen.strokeStyle = color;
  pen.lineWidth = state === "disconnected" ? 1 : 4;
  pen.setLineDash(state === "connecting" ? [6, 5] : []);
  pen.beginPath();
  pen.moveTo(from, y);
  if (state === "reconnecting") {
    pen.lineWidth = 2;
    for (let x = from, up = true; x < to; x += 5, up = !up) pen.lineTo(x, y + (up ? -7 : 7));
  }
  pen.lineTo(to, y);
  pen.stroke();
  pen.setLineDash([]);
}
