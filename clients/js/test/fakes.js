/** A clock, a WebSocket and a server's answers, all moved by hand. */

import { webcrypto } from "node:crypto";
import { Peloton } from "../peloton.js";

// Node 18, which Debian 12 has, keeps it out of the globals; browsers and later Nodes have it there.
globalThis.crypto ??= webcrypto;

/** Time passes only when `advance` is called. */
export class FakeClock {
  #now = 0;
  #next = 1;
  #timers = new Map();

  now = () => this.#now;

  setTimeout = (callback, ms) => {
    const id = this.#next++;
    this.#timers.set(id, { at: this.#now + ms, callback });
    return id;
  };

  clearTimeout = (id) => {
    this.#timers.delete(id);
  };

  get timers() {
    return this.#timers.size;
  }

  /** Fires what is due, in order; lets promises settle before, in between and after. */
  async advance(ms) {
    await settle();
    const end = this.#now + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end);
      if (due.length === 0) break;
      const [id, timer] = due.reduce((a, b) => (b[1].at < a[1].at ? b : a));
      this.#timers.delete(id);
      this.#now = timer.at;
      timer.callback();
      await settle();
    }
    this.#now = end;
    await settle();
  }
}

export function settle() {
  return new Promise((resolve) => setImmediate(resolve));
}

/** A fresh class each time, which keeps its instances in `made`. */
export function fakeWebSocket() {
  return class FakeWebSocket {
    static made = [];
    static get last() {
      return this.made.at(-1);
    }

    frames = [];
    closed = null;
    bufferedAmount = 0;

    constructor(url, protocols) {
      Object.assign(this, { url, protocols });
      this.onopen = this.onmessage = this.onclose = this.onerror = null;
      FakeWebSocket.made.push(this);
    }

    send(frame) {
      this.frames.push(frame);
    }

    close(code, reason) {
      this.closed = { code, reason };
    }

    // The server's side

    get sent() {
      return this.frames.map((frame) => JSON.parse(frame));
    }

    get lastSent() {
      return this.sent.at(-1);
    }

    open() {
      this.onopen?.({});
    }

    lose(code = 1006, reason = "") {
      this.onerror?.({});
      this.onclose?.({ code, reason });
    }

    receive(type, payload, tail = "\n") {
      const uuid = "00000000-0000-4000-8000-000000000000";
      this.onmessage?.({ data: JSON.stringify({ meta: { type, uuid }, payload }) + tail });
    }

    ack(request = this.lastSent) {
      this.receive(8, { for: request.meta.uuid, for_type: request.meta.type });
    }

    nack(code, message, request = this.lastSent) {
      this.receive(7, { for: request.meta.uuid, for_type: request.meta.type, code, message });
    }

    res(args, request = this.lastSent) {
      this.receive(9, { for: request.meta.uuid, uri: request.payload.uri, args });
    }

    evnt(channel, args, pattern) {
      this.receive(10, { for: "11111111-1111-4111-8111-111111111111", channel, pattern, args });
    }
  };
}

/** A client on fakes; `socket` is always the newest one. */
export function setup(options = {}) {
  const WebSocket = fakeWebSocket();
  const clock = new FakeClock();
  const client = new Peloton("ws://server/ws", {
    WebSocket,
    clock,
    random: () => 0.5,
    heartbeat: 0,
    ...options,
  });
  return {
    client,
    clock,
    WebSocket,
    get socket() {
      return WebSocket.last;
    },
  };
}

export function setupOpen(options) {
  const world = setup(options);
  world.socket.open();
  return world;
}
