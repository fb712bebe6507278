// The log of what went over the WebSocket, newest last, at most LIMIT lines.

const LIMIT = 150;
const GIST_LIMIT = 120;

const NOTES = {
  CALL: "Asks for a function. The timeout is in nanoseconds.",
  PUB: "Publishes an event on a channel.",
  SUB: "Asks for a channel's events.",
  UNSB: "Wants no more of a channel's events.",
  ACK: "The server has registered the request that “for” names.",
  NACK: "The server did not register the request that “for” names.",
  RES: "The result of the call that “for” names.",
  EVNT: "Somebody published on a channel that this page subscribes to; “for” names that message.",
  EXP: "Made in this page, never sent: the time of the call that “for” names is over.",
};

const ARROWS = { out: ["↑", "sent"], in: ["↓", "received"], own: ["•", "made here"] };

const byId = (id) => document.getElementById(id);

export class Wire {
  #names;
  #pingChannel;
  #list = byId("wire-frames");
  #pings = byId("wire-pings");
  #paused = false;

  constructor({ NAMES, PING_CHANNEL }) {
    this.#names = NAMES;
    this.#pingChannel = PING_CHANNEL;
    byId("wire-clear").addEventListener("click", () => this.#list.replaceChildren());
    const pause = byId("wire-pause");
    pause.addEventListener("click", () => {
      this.#paused = !this.#paused;
      pause.setAttribute("aria-pressed", String(this.#paused));
    });
    for (const name of ["pointerover", "focusin"]) {
      this.#list.addEventListener(name, ({ target }) => this.#relate(target.closest("[data-thread]")));
    }
    for (const name of ["pointerleave", "focusout"]) {
      this.#list.addEventListener(name, () => this.#relate(null));
    }
  }

  /** Shows one message; `direction` is out, in or own. */
  add(direction, text) {
    if (this.#paused) return;
    const message = JSON.parse(text);
    const { type, uuid } = message.meta;
    const payload = message.payload;
    if (payload.channel === this.#pingChannel && !this.#pings.checked) return;
    const name = this.#names[type] ?? String(type);
    const line = document.createElement("div");
    line.dataset.type = name;
    // An answer belongs to the message that it is for.
    line.dataset.thread = payload.for ?? uuid;
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    summary.append(...this.#cells(direction, name, payload, line.dataset.thread));
    details.append(summary);
    // The complete message is drawn when somebody looks.
    details.addEventListener("toggle", () => draw(details, name, message), { once: true });
    line.append(details);
    this.#append(line);
  }

  /** A line between the messages. */
  note(text) {
    this.#append(element("div", "note", text));
  }

  #cells(direction, name, payload, thread) {
    const [arrow, meaning] = ARROWS[direction];
    const time = new Date();
    const clock = time.toTimeString().slice(0, 8);
    const ms = String(time.getMilliseconds()).padStart(3, "0");
    const sign = element("span", "arrow", arrow);
    sign.title = meaning;
    sign.setAttribute("role", "img");
    sign.setAttribute("aria-label", meaning);
    return [
      element("time", "", `${clock}.${ms}`),
      sign,
      element("span", "type", name),
      element("span", "gist", gist(payload)),
      element("span", "id", thread.slice(-4)),
    ];
  }

  #append(line) {
    const list = this.#list;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    list.append(line);
    while (list.childElementCount > LIMIT) list.firstElementChild.remove();
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  /** Marks the messages that belong together. */
  #relate(line) {
    const thread = line?.dataset.thread;
    for (const other of this.#list.children) {
      const related = thread !== undefined && other.dataset.thread === thread;
      other.classList.toggle("related", related);
    }
  }
}

function gist(payload) {
  const subject = payload.uri ?? payload.channel ?? "";
  if (payload.message !== undefined) return `${subject} ${payload.code} ${payload.message}`;
  if (payload.args === undefined || payload.args === null) return subject;
  return `${subject} ${JSON.stringify(payload.args)}`.slice(0, GIST_LIMIT);
}

function draw(details, name, message) {
  const body = document.createElement("div");
  body.append(
    element("p", "", NOTES[name] ?? "A type of the application’s own."),
    element("pre", "", JSON.stringify(message, null, 2)),
  );
  details.append(body);
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}
