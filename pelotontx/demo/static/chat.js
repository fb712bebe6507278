// The chat: one channel, everybody who has the page open. Anybody may publish anything there, so what
// comes in is checked, and shown as text only.

const CHANNEL = "demo.chat";
const LINES_LIMIT = 200;
const NAME_LIMIT = 40;
const TEXT_LIMIT = 500;
const RETRY_MS = 2000;

const RIDERS = ["Climber", "Sprinter", "Rouleur", "Puncheur", "Domestique", "Breakaway"];

const byId = (id) => document.getElementById(id);

export class Chat {
  #client;
  #peloton;
  #list = byId("chat-messages");
  #name = byId("chat-name");
  #text = byId("chat-text");
  // Marks this tab's own messages; nobody is kept from copying it.
  #self = Math.random().toString(36).slice(2, 12);

  constructor(client, peloton) {
    this.#client = client;
    this.#peloton = peloton;
    this.#name.value = stored("name") ?? randomName();
    this.#name.addEventListener("change", () => store("name", this.#name.value));
    byId("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    client.addEventListener("state", ({ detail }) => {
      if (detail.state === "reconnecting" && detail.previous === "open") {
        this.#system("Connection lost. What you send now waits for the next one.");
      }
    });
    client.addEventListener("resubscribed", () => {
      this.#system("Connected again, and subscribed. What was said meanwhile is missed.");
    });
    this.#join();
  }

  async #join() {
    const { ConnectionLost, PelotonError } = this.#peloton;
    for (;;) {
      try {
        await this.#client.subscribe(CHANNEL, (args) => this.#received(args));
        this.#system("You are in. Say hello.");
        return;
      } catch (error) {
        if (!(error instanceof PelotonError)) throw error;
        if (error instanceof ConnectionLost) return;
        // The server is there before its broker is: ask again.
        this.#system(`Not subscribed yet: ${error.message}`);
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  async #send() {
    const text = this.#text.value.trim();
    if (!text) return;
    this.#text.value = "";
    const name = this.#name.value.trim() || "Somebody";
    try {
      await this.#client.publish(CHANNEL, { name, text, from: this.#self });
    } catch (error) {
      if (!(error instanceof this.#peloton.PelotonError || error instanceof TypeError)) throw error;
      this.#system(`Not sent: ${error.message}`);
      this.#text.value ||= text;
    }
  }

  #received(args) {
    if (typeof args?.text !== "string" || typeof args.name !== "string") return;
    const own = args.from === this.#self;
    const who = document.createElement("span");
    who.className = "who";
    const name = document.createElement("b");
    name.textContent = args.name.slice(0, NAME_LIMIT) + (own ? " (you)" : "");
    const time = document.createElement("time");
    time.textContent = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    who.append(name, time);
    const text = document.createElement("span");
    text.textContent = args.text.slice(0, TEXT_LIMIT);
    this.#line(own ? "own" : "other", who, text);
  }

  #system(text) {
    this.#line("system", text);
  }

  #line(kind, ...content) {
    const list = this.#list;
    // Whoever has scrolled back to read stays there.
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
    const line = document.createElement("div");
    line.className = kind;
    line.append(...content);
    list.append(line);
    while (list.childElementCount > LINES_LIMIT) list.firstElementChild.remove();
    if (atEnd) list.scrollTop = list.scrollHeight;
  }
}

function randomName() {
  const rider = RIDERS[Math.floor(Math.random() * RIDERS.length)];
  return `${rider} ${1 + Math.floor(Math.random() * 198)}`;
}

// A browser may forbid storage; the name is then new in each load.

function stored(key) {
  try {
    return sessionStorage.getItem(`peloton.${key}`);
  } catch {
    return null;
  }
}

function store(key, value) {
  try {
    sessionStorage.setItem(`peloton.${key}`, value);
  } catch {
    // As above.
  }
}
