// The panel that calls functions: a form, the last result, the history.

const HISTORY_LIMIT = 6;

const FUNCTIONS = {
  "test.echo": {
    label: "Text",
    example: "Bonjour, peloton",
    hint: "Returns what it gets.",
  },
  "test.reverse": {
    label: "Text",
    example: "Vive le vélo",
    hint: "Backwards, code point by code point. 🚲 is one.",
  },
  "test.delay": {
    label: "Milliseconds",
    example: "500",
    hint: "Past its timeout a call expires. A word is an error.",
  },
};

const BADGES = {
  waiting: "Calling…",
  result: "Result",
  error: "Error",
  expired: "Expired",
  refused: "Refused",
  lost: "Lost",
};

const byId = (id) => document.getElementById(id);

export class Calls {
  #client;
  #peloton;
  #chosen;
  #form = byId("call-form");
  #argument = byId("call-argument");
  #timeout = byId("call-timeout");
  #arguments = {};
  #latest = null;

  constructor(client, peloton, chosen) {
    this.#client = client;
    this.#peloton = peloton;
    this.#chosen = chosen;
    this.#form.addEventListener("change", () => this.#choose());
    this.#form.addEventListener("input", () => this.#tell());
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#call(this.#choice());
    });
    this.#choose();
  }

  #choice() {
    const uri = this.#form.elements.uri.value;
    return { uri, args: this.#argument.value, timeout: this.#timeout.valueAsNumber };
  }

  /** Shows the chosen function's own argument; what was typed for another is kept for it. */
  #choose() {
    const { uri } = this.#choice();
    const { label, example, hint } = FUNCTIONS[uri];
    const before = this.#argument.dataset.uri;
    if (before !== uri) {
      if (before) this.#arguments[before] = this.#argument.value;
      this.#argument.value = this.#arguments[uri] ?? example;
      this.#argument.dataset.uri = uri;
    }
    byId("call-argument-label").textContent = label;
    byId("call-hint").textContent = hint;
    this.#tell();
  }

  #tell() {
    this.#chosen(this.#choice());
  }

  async #call({ uri, args, timeout }) {
    const started = performance.now();
    const token = (this.#latest = {});
    this.#show({ outcome: "waiting", value: `${uri} has ${timeout} ms.` });
    const ended = await this.#outcome(uri, args, timeout);
    ended.time = (performance.now() - started).toFixed(1);
    // An earlier call that ends later goes to the history only.
    if (token === this.#latest) this.#show(ended);
    this.#remember(uri, args, ended);
  }

  async #outcome(uri, args, timeout) {
    const { CallError, CallExpired, ConnectionLost, PelotonError, Refused } = this.#peloton;
    try {
      const value = await this.#client.call(uri, args, { timeout });
      return { outcome: "result", value: JSON.stringify(value) };
    } catch (error) {
      const kinds = [
        [CallError, "error", error.message],
        [CallExpired, "expired", "No result in time."],
        [Refused, "refused", error.message],
        [ConnectionLost, "lost", `${error.message}. The function may have run all the same.`],
        [PelotonError, "error", error.message],
        [TypeError, "error", error.message],
      ];
      const kind = kinds.find(([type]) => error instanceof type);
      if (kind === undefined) throw error;
      return { outcome: kind[1], value: kind[2] };
    }
  }

  #show({ outcome, value, time = "" }) {
    byId("call-result").dataset.outcome = outcome;
    byId("result-badge").textContent = BADGES[outcome];
    byId("result-time").textContent = time && `${time} ms`;
    byId("result-value").textContent = value;
  }

  #remember(uri, args, { outcome, value, time }) {
    const body = byId("call-history");
    body.querySelector(".empty")?.remove();
    const row = body.insertRow(0);
    row.dataset.outcome = outcome;
    for (const text of [uri, args]) row.insertCell().textContent = text;
    const badge = document.createElement("span");
    badge.className = "badge";
    badge.textContent = BADGES[outcome];
    row.insertCell().append(badge);
    const cell = row.insertCell();
    cell.className = "number";
    cell.textContent = time;
    row.title = value.slice(0, 200);
    while (body.rows.length > HISTORY_LIMIT) body.deleteRow(-1);
  }
}
