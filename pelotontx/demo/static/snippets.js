// The chosen call as a shell command, in Python, in JavaScript; and the function itself.

const CALLEES = {
  "test.echo": ["def echo(args):", "    return args"],
  "test.reverse": ["def reverse(args):", "    return args[::-1]"],
  "test.delay": [
    "async def delay(args):",
    "    await deferLater(reactor, int(args) / 1000)",
    "    return int(args)",
  ],
};

// Where the command line connects unless told otherwise.
const DEFAULT_URL = "ws://127.0.0.1:8080/ws";

const byId = (id) => document.getElementById(id);

export class Snippets {
  #url;
  #urlOption;
  #clientUrl;
  #tabs = [...document.querySelectorAll('[role="tab"]')];

  constructor({ websocket, clientPath }) {
    const url = new URL(websocket, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    this.#url = url.href;
    this.#urlOption = url.href === DEFAULT_URL ? "" : ` --url ${url.href}`;
    this.#clientUrl = new URL(clientPath, location.href).href;
    for (const tab of this.#tabs) {
      tab.addEventListener("click", () => this.#select(tab));
      tab.addEventListener("keydown", (event) => this.#key(event, tab));
    }
    this.#offerCopy(byId("code-copy"));
  }

  /** Writes all snippets for one call. */
  show({ uri, args, timeout }) {
    const json = JSON.stringify(args);
    const seconds = Number.isFinite(timeout) ? timeout / 1000 : 2;
    const texts = {
      shell: [
        "# peloton is in .venv/bin: . .venv/bin/activate",
        "",
        "# Call it",
        `peloton call ${uri} ${shellQuoted(json)}${this.#urlOption} --timeout ${seconds}s`,
        "",
        "# Say something in the chat",
        "echo 'pub demo.chat {\"name\": \"Shell\", \"text\": \"Hello!\"}' |",
        `    peloton client --url ${this.#url}`,
        "",
        "# Or look around: sub, pub, call, help ...",
        `peloton client --url ${this.#url}`,
      ],
      python: [
        "from twisted.internet.task import react",
        "from pelotontx.client import Client",
        "",
        "async def main(reactor):",
        `    async with Client("${this.#url}", reactor=reactor) as client:`,
        `        print(await client.call("${uri}", ${json}, timeout_s=${seconds}))`,
        "",
        "react(main)",
      ],
      browser: [
        `import { connect } from "${this.#clientUrl}";`,
        "",
        `const client = await connect("${this.#url}");`,
        `console.log(await client.call("${uri}", ${json}, { timeout: ${seconds * 1000} }));`,
        'await client.subscribe("demo.chat", (args) => console.log(args));',
      ],
      callee: [
        ...(uri === "test.delay"
          ? ["from twisted.internet import reactor", "from twisted.internet.task import deferLater"]
          : []),
        "from pelotontx.backend.callee import Callee",
        "",
        "callee = Callee()",
        "",
        `@callee.function("${uri}")`,
        ...CALLEES[uri],
        "",
        "# Saved as functions.py, it runs in a process of its own:",
        "#   peloton callee functions:callee --broker redis://127.0.0.1:6379",
      ],
    };
    for (const [name, lines] of Object.entries(texts)) {
      byId(`code-${name}`).querySelector("code").textContent = lines.join("\n");
    }
  }

  #select(chosen) {
    for (const tab of this.#tabs) {
      const selected = tab === chosen;
      tab.setAttribute("aria-selected", String(selected));
      tab.tabIndex = selected ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = !selected;
    }
  }

  #key(event, tab) {
    const last = this.#tabs.length - 1;
    const at = this.#tabs.indexOf(tab);
    const target = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    const next = this.#tabs.at(target > last ? 0 : target);
    this.#select(next);
    next.focus();
  }

  #offerCopy(button) {
    // Only secure contexts (https, loopback) have a clipboard.
    if (!navigator.clipboard) {
      button.hidden = true;
      return;
    }
    button.addEventListener("click", async () => {
      const code = document.querySelector('[role="tabpanel"]:not([hidden]) code');
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
