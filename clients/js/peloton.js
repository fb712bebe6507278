/**
 * The browser's and Node's side of pelotontx: calls, publishing and subscriptions over one WebSocket.
 *
 *     import { connect } from "/peloton.js";
 *
 *     const client = await connect();                       // ws(s)://this host/ws
 *     await client.call("test.reverse", "hello");           // "olleh"
 *     await client.subscribe("news", (args) => console.log(args));
 *     await client.publish("news", { title: "It works" });
 *
 * It speaks the WebSocket subprotocol juggler.0: text frames, each one JSON value
 * {"meta": {"type", "uuid"}, "payload": {...}}.
 *
 *     1 CALL  uri, timeout (int, ns), args      8 ACK   for, for_type, uri | channel
 *     2 PUB   channel, args                     7 NACK  for, for_type, uri | channel, code, message
 *     3 SUB   channel, pattern                  9 RES   for, uri, args
 *     4 UNSB  channel, pattern                 10 EVNT  for, channel, pattern (if one matched), args
 *                                             256 EXP   only inside a client: a call's time is over
 *
 * What each method takes, gives and rejects with stands in peloton.d.ts, beside this file.
 */

const SUBPROTOCOL = "juggler.0";

const CALL = 1;
const PUB = 2;
const SUB = 3;
const UNSB = 4;
const NACK = 7;
const ACK = 8;
const RES = 9;
const EVNT = 10;
const EXP = 256;

/** The names of the message types, for logs. */
export const NAMES = Object.freeze({
  [CALL]: "CALL",
  [PUB]: "PUB",
  [SUB]: "SUB",
  [UNSB]: "UNSB",
  [NACK]: "NACK",
  [ACK]: "ACK",
  [RES]: "RES",
  [EVNT]: "EVNT",
  [EXP]: "EXP",
});

/** Nobody subscribes to it: the UNSB that a ping sends is answered by an ACK and changes nothing. */
export const PING_CHANNEL = "peloton.ping";

const NS_PER_MS = 1e6;
// The longest delay that setTimeout knows; a longer one would fire at once.
const LONGEST_MS = 2 ** 31 - 1;
// What a client may close with (WebSocket API: 1000 or 3000-4999).
const NORMAL = 1000;
const NO_HEARTBEAT = 4000;
const BAD_FRAME = 4002;
// NACK: later perhaps.
const TOO_MANY = 429;

const DEFAULTS = {
  timeout: 10_000,
  connectTimeout: 10_000,
  heartbeat: 25_000,
  waitingLimit: 1000,
  pendingLimit: 10_000,
  bufferLimit: 16 * 1024 * 1024,
};
// `stable`: a connection that lived this long was a good one, and the next delay starts small again.
const BACKOFF = { min: 500, max: 20_000, factor: 2, stable: 5000 };

// What has waited for a connection goes out in portions: servers limit the rate of messages (ours to
// 50 a second and 100 at once) and hang up on those who pass it by far.
const PORTION = 50;
const PORTION_EVERY_MS = 1000;

const systemClock = {
  now: () => performance.now(),
  setTimeout: (callback, ms) => globalThis.setTimeout(callback, ms),
  clearTimeout: (timer) => globalThis.clearTimeout(timer),
};

/** The root of what this module raises on purpose. */
export class PelotonError extends Error {
  constructor(message) {
    super(message);
    this.name = "PelotonError";
  }
}

/** The function that was called answered with an error. */
export class CallError extends PelotonError {
  constructor(uri, payload) {
    super(payload.message);
    this.name = "CallError";
    this.uri = uri;
    this.payload = payload;
  }
}

/** A request got no answer in its time. */
export class Expired extends PelotonError {
  constructor(message) {
    super(message);
    this.name = "Expired";
  }
}

/** A call got no result in its time; the function may have run all the same. */
export class CallExpired extends Expired {
  constructor(uri) {
    super(`${uri}: no result in time`);
    this.name = "CallExpired";
    this.uri = uri;
  }
}

/** The server said no (NACK). */
export class Refused extends PelotonError {
  constructor(code, message) {
    super(`${code} ${message}`);
    this.name = "Refused";
    this.code = code;
    this.reason = message;
  }
}

/** The connection went away, or the client was closed, before the answer came. */
export class ConnectionLost extends PelotonError {
  constructor(code, reason, sent) {
    super(`connection lost (${code}${reason ? ` ${reason}` : ""})`);
    this.name = "ConnectionLost";
    this.code = code;
    this.reason = reason;
    this.sent = sent;
  }
}

/** One of this client's own bounds was reached; nothing was sent. */
export class QueueFull extends PelotonError {
  constructor(message) {
    super(message);
    this.name = "QueueFull";
  }
}

/** One function that listens to one channel or pattern. */
class Subscription {
  #leave;

  constructor(channel, pattern, leave) {
    this.channel = channel;
    this.pattern = pattern;
    this.#leave = leave;
  }

  async unsubscribe() {
    const leave = this.#leave;
    this.#leave = null;
    await leave?.();
  }
}

/** A connection that mends itself; dispatches `state`, `resubscribed` and `refused` events. */
export class Peloton extends EventTarget {
  #url;
  #options;
  #backoff;
  #clock;
  #random;
  #trace;
  #WebSocket;
  #state = "connecting";
  #socket = null;
  #attempt = 0;
  #openedAt = null;
  #heardAt = 0;
  #connectTimer;
  #retryTimer;
  #heartbeatTimer;
  #portionTimer;
  /** Whether some requests still wait although the connection is open; later ones queue behind. */
  #inPortions = false;
  /** uuid -> request in the order of sending; those not yet sent wait for the connection. */
  #pending = new Map();
  #waiting = 0;
  /** key -> entry: what the server has been, or will be, told to send us. */
  #entries = new Map();

  constructor(url = "/ws", options = {}) {
    super();
    this.#url = absolute(url);
    this.#options = { ...DEFAULTS, ...defined(options) };
    this.#backoff = { ...BACKOFF, ...defined(options.backoff ?? {}) };
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
    this.#trace = options.trace ?? null;
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (typeof this.#WebSocket !== "function") {
      throw new TypeError("no WebSocket class here: give one as options.WebSocket");
    }
    checkTimeout(this.#options.timeout);
    checkTimeout(this.#options.connectTimeout);
    this.#connect();
    globalThis.addEventListener?.("online", this.#retryNow);
  }

  get state() {
    return this.#state;
  }

  get url() {
    return this.#url;
  }

  /** Resolves once the connection is open. */
  async opened({ timeout = this.#options.timeout, signal } = {}) {
    if (this.#state === "open") return;
    this.#refuseIfClosed();
    const { promise, resolve, reject } = deferred();
    const changed = ({ detail }) => {
      if (detail.state === "open") resolve();
      if (detail.state === "closed") reject(new ConnectionLost(detail.code, detail.reason, false));
    };
    this.addEventListener("state", changed);
    try {
      await this.#within(promise, "not connected in time", timeout, signal);
    } finally {
      this.removeEventListener("state", changed);
    }
  }

  /** Calls a function and resolves with its result. */
  async call(uri, args, { timeout, signal } = {}) {
    checkName("uri", uri);
    const json = encode(args);
    const head = `"payload":{"uri":${encode(uri)},"timeout":`;
    return this.#request(CALL, (leftMs) => `${head}${nanoseconds(leftMs)},"args":${json}}`, {
      timeout,
      signal,
      expired: () => new CallExpired(uri),
      uri,
    });
  }

  /** Sends an event to everybody who is subscribed; resolves when the server has taken it. */
  async publish(channel, args, { timeout, signal } = {}) {
    checkName("channel", channel);
    const payload = `"payload":{"channel":${encode(channel)},"args":${encode(args)}}`;
    await this.#request(PUB, () => payload, {
      timeout,
      signal,
      expired: () => new Expired(`${channel}: not acknowledged in time`),
    });
  }

  /** Calls `listener` with every event of a channel, over all reconnections, until unsubscribed. */
  async subscribe(channel, listener, { pattern = false, timeout = this.#options.timeout, signal } = {}) {
    checkName("channel", channel);
    if (typeof listener !== "function") throw new TypeError("the listener must be a function");
    signal?.throwIfAborted();
    checkTimeout(timeout);
    this.#refuseIfClosed();
    const entry = this.#entry(channel, Boolean(pattern));
    // An object of its own: the same function may listen twice.
    const place = { listener };
    entry.places.add(place);
    try {
      const late = `${channel}: not subscribed in time`;
      await this.#within(entry.confirmed.promise, late, timeout, signal);
    } catch (error) {
      this.#leave(entry, place).catch(ignore);
      throw error;
    }
    return new Subscription(channel, entry.pattern, () => this.#leave(entry, place));
  }

  /** Measures one round trip to the server, in milliseconds. */
  async ping({ timeout, signal } = {}) {
    const start = this.#clock.now();
    try {
      await this.#request(UNSB, () => subscriptionPayload(PING_CHANNEL, false), {
        timeout,
        signal,
        expired: () => new Expired("no answer to a ping in time"),
      });
    } catch (error) {
      // A connection that may not unsubscribe answers as quickly.
      if (!(error instanceof Refused)) throw error;
    }
    return this.#clock.now() - start;
  }

  /** Ends the connection for good; what is pending rejects with ConnectionLost. */
  close(code = NORMAL, reason = "") {
    if (this.#state === "closed") return;
    globalThis.removeEventListener?.("online", this.#retryNow);
    const socket = this.#socket;
    this.#detach();
    for (const entry of this.#entries.values()) {
      this.#clock.clearTimeout(entry.timer);
      entry.confirmed.reject(new ConnectionLost(code, "closed by this client", false));
    }
    this.#entries.clear();
    this.#failRequests(() => true, code, "closed by this client");
    this.#setState("closed", { code, reason });
    socket?.close(code, reason);
  }

  // The connection

  #connect() {
    this.#retryTimer = undefined;
    const socket = new this.#WebSocket(this.#url, [SUBPROTOCOL]);
    this.#socket = socket;
    this.#connectTimer = this.#clock.setTimeout(
      () => this.#drop(NORMAL, "not connected in time"),
      this.#options.connectTimeout,
    );
    socket.onopen = () => this.#opened();
    socket.onmessage = (event) => this.#received(event.data);
    socket.onclose = (event) => this.#lost(event.code, event.reason);
    // A close event follows every error event, and knows more.
    socket.onerror = ignore;
  }

  #opened() {
    this.#clock.clearTimeout(this.#connectTimer);
    this.#openedAt = this.#heardAt = this.#clock.now();
    this.#inPortions = true;
    this.#setState("open");
    if (this.#state !== "open") return;
    // Subscriptions first: an event published by one of the waiting requests must not be missed.
    const waiting = [...this.#pending];
    this.#pending.clear();
    for (const entry of this.#entries.values()) this.#sub(entry);
    for (const [uuid, request] of waiting) this.#pending.set(uuid, request);
    this.#sendPortion();
    this.#armHeartbeat(this.#options.heartbeat);
  }

  #sendPortion() {
    const waiting = [...this.#pending.values()].filter((request) => !request.sent);
    for (const request of waiting.slice(0, PORTION)) {
      this.#send(request, request.deadline - this.#clock.now());
    }
    this.#inPortions = waiting.length > PORTION;
    if (!this.#inPortions) return;
    this.#portionTimer = this.#clock.setTimeout(() => this.#sendPortion(), PORTION_EVERY_MS);
  }

  /** Gives a connection up without waiting for the peer, who may be gone. */
  #drop(code, reason) {
    const socket = this.#socket;
    this.#lost(code, reason);
    socket?.close(code, reason);
  }

  #lost(code, reason) {
    const { now } = this.#clock;
    const stable = this.#openedAt !== null && now() - this.#openedAt >= this.#backoff.stable;
    this.#detach();
    if (stable) this.#attempt = 0;
    const delay = this.#delay(this.#attempt);
    this.#attempt += 1;
    this.#retryTimer = this.#clock.setTimeout(() => this.#connect(), delay);
    this.#failRequests((request) => request.sent, code, reason);
    this.#setState("reconnecting", { code, reason, delay, attempt: this.#attempt });
  }

  #detach() {
    this.#clock.clearTimeout(this.#connectTimer);
    this.#clock.clearTimeout(this.#retryTimer);
    this.#clock.clearTimeout(this.#heartbeatTimer);
    this.#clock.clearTimeout(this.#portionTimer);
    this.#retryTimer = undefined;
    this.#openedAt = null;
    if (this.#socket === null) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket = null;
  }

  /** Full jitter: anything up to the exponential bound, so that a crowd comes back spread out. */
  #delay(attempt) {
    const { min, max, factor } = this.#backoff;
    return this.#random() * Math.min(max, min * factor ** attempt);
  }

  #retryNow = () => {
    if (this.#retryTimer === undefined) return;
    this.#clock.clearTimeout(this.#retryTimer);
    this.#connect();
  };

  /** Pings when nothing was heard for a while: a vanished peer closes nothing. */
  #armHeartbeat(ms) {
    if (!this.#options.heartbeat) return;
    this.#heartbeatTimer = this.#clock.setTimeout(() => this.#beat(this.#socket), ms);
  }

  async #beat(socket) {
    const left = this.#heardAt + this.#options.heartbeat - this.#clock.now();
    if (left <= 0) {
      const heardAt = this.#heardAt;
      try {
        await this.ping({ timeout: this.#options.heartbeat });
      } catch {
        const silent = this.#heardAt === heardAt;
        if (this.#socket === socket && silent) this.#drop(NO_HEARTBEAT, "no heartbeat");
      }
    }
    if (this.#socket === socket) this.#armHeartbeat(Math.max(left, 0) || this.#options.heartbeat);
  }

  #setState(state, detail = {}) {
    const previous = this.#state;
    this.#state = state;
    this.#dispatch("state", { state, previous, ...detail });
  }

  #dispatch(name, detail) {
    // Not a CustomEvent, which Node 18 does not have.
    this.dispatchEvent(Object.assign(new Event(name), { detail }));
  }

  #refuseIfClosed() {
    if (this.#state === "closed") throw new ConnectionLost(NORMAL, "the client is closed", false);
  }

  // Requests

  #request(type, payload, { timeout = this.#options.timeout, signal, expired, uri }) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      checkTimeout(timeout);
      this.#refuseIfClosed();
      // Subscriptions are the application's own; that they are many must not lose any.
      if (type !== SUB) this.#checkRoom();
      const uuid = newUuid();
      const request = { uuid, type, payload, uri, sent: false, deadline: this.#clock.now() + timeout };
      const timer = this.#clock.setTimeout(() => this.#expire(request, expired()), timeout);
      const aborted = () => request.settle(reject, signal.reason);
      request.settle = (how, value) => {
        this.#pending.delete(uuid);
        if (!request.sent) this.#waiting -= 1;
        this.#clock.clearTimeout(timer);
        signal?.removeEventListener("abort", aborted);
        how(value);
      };
      request.resolve = (value) => request.settle(resolve, value);
      request.reject = (error) => request.settle(reject, error);
      signal?.addEventListener("abort", aborted);
      this.#waiting += 1;
      this.#pending.set(uuid, request);
      if (this.#state === "open" && !this.#inPortions) this.#send(request, timeout);
    });
  }

  #checkRoom() {
    const { waitingLimit, pendingLimit, bufferLimit } = this.#options;
    if (this.#waiting >= waitingLimit) {
      throw new QueueFull(`${waitingLimit} requests wait for the connection`);
    }
    if (this.#pending.size >= pendingLimit) {
      throw new QueueFull(`${pendingLimit} requests wait for their answers`);
    }
    if (this.#socket?.bufferedAmount > bufferLimit) {
      throw new QueueFull(`more than ${bufferLimit} bytes wait to be sent`);
    }
  }

  #send(request, leftMs) {
    request.sent = true;
    this.#waiting -= 1;
    const frame = message(request.type, request.uuid, request.payload(leftMs));
    // The frame is not kept: an answer needs the uuid only.
    request.payload = null;
    this.#trace?.("out", frame);
    this.#socket.send(frame);
  }

  #expire(request, error) {
    if (this.#trace && request.type === CALL) {
      const payload = `"payload":{"for":"${request.uuid}","uri":${encode(request.uri)},"args":null}`;
      this.#trace("own", message(EXP, newUuid(), payload));
    }
    request.reject(error);
  }

  #failRequests(concerned, code, reason) {
    for (const request of [...this.#pending.values()]) {
      if (concerned(request)) request.reject(new ConnectionLost(code, reason, request.sent));
    }
  }

  // What the server sends

  #received(frame) {
    this.#heardAt = this.#clock.now();
    this.#trace?.("in", frame);
    let type, payload;
    try {
      ({ meta: { type }, payload } = JSON.parse(frame));
      if (typeof payload !== "object" || payload === null) throw new TypeError("no payload");
    } catch {
      this.#drop(BAD_FRAME, "not a juggler message");
      return;
    }
    if (type === EVNT) this.#event(payload);
    else this.#answer(type, payload, this.#pending.get(payload.for));
  }

  /** Settles a request; answers to those that expired or were aborted find none. */
  #answer(type, payload, request) {
    if (request === undefined) return;
    if (type === NACK) {
      request.reject(new Refused(payload.code ?? 0, payload.message ?? ""));
    } else if (type === RES && request.type === CALL) {
      const args = payload.args ?? null;
      if (typeof args?.error?.message === "string") {
        request.reject(new CallError(request.uri, args.error));
      } else {
        request.resolve(args);
      }
    } else if (type === ACK && request.type !== CALL) {
      // A call's ACK settles nothing: its RES does, and may even have come first.
      request.resolve();
    }
  }

  #event({ channel, pattern, args = null, for: uuid }) {
    const entry = this.#entries.get(pattern ? keyOf(pattern, true) : keyOf(channel, false));
    if (entry === undefined) return;
    const about = { channel, pattern: pattern || null, for: uuid };
    for (const place of [...entry.places]) {
      if (!entry.places.has(place)) continue;
      try {
        place.listener(args, about);
      } catch (error) {
        // One listener's fault is told to the page, and keeps nothing from the others.
        report(error);
      }
    }
  }

  // Subscriptions

  #entry(channel, pattern) {
    const key = keyOf(channel, pattern);
    let entry = this.#entries.get(key);
    if (entry === undefined) {
      entry = { key, channel, pattern, places: new Set(), confirmed: deferred(), active: false };
      entry.failures = 0;
      entry.confirmed.promise.catch(ignore);
      this.#entries.set(key, entry);
      this.#sub(entry);
    }
    return entry;
  }

  /** Tells the server of an entry; without a connection this happens when there is one. */
  async #sub(entry) {
    this.#clock.clearTimeout(entry.timer);
    if (this.#state !== "open") return;
    try {
      await this.#request(SUB, () => subscriptionPayload(entry.channel, entry.pattern), {
        expired: () => new Expired(`${entry.channel}: not subscribed in time`),
      });
    } catch (error) {
      this.#subFailed(entry, error);
      return;
    }
    if (this.#entries.get(entry.key) !== entry) return;
    entry.failures = 0;
    if (entry.active) {
      this.#dispatch("resubscribed", { channel: entry.channel, pattern: entry.pattern });
    }
    entry.active = true;
    entry.confirmed.resolve();
  }

  #subFailed(entry, error) {
    if (this.#entries.get(entry.key) !== entry || error instanceof ConnectionLost) return;
    const final = error instanceof Refused && error.code < 500 && error.code !== TOO_MANY;
    if (final || (error instanceof Refused && !entry.active)) {
      this.#entries.delete(entry.key);
      entry.confirmed.reject(error);
      if (entry.active) {
        this.#dispatch("refused", { channel: entry.channel, pattern: entry.pattern, error });
      }
      return;
    }
    // The server is there but busy, or its broker is not: what was subscribed shall be so again.
    entry.timer = this.#clock.setTimeout(() => this.#sub(entry), this.#delay(entry.failures));
    entry.failures += 1;
  }

  async #leave(entry, place) {
    entry.places.delete(place);
    if (entry.places.size > 0 || this.#entries.get(entry.key) !== entry) return;
    this.#entries.delete(entry.key);
    this.#clock.clearTimeout(entry.timer);
    if (this.#state !== "open") return;
    try {
      await this.#request(UNSB, () => subscriptionPayload(entry.channel, entry.pattern), {
        expired: () => new Expired(`${entry.channel}: not unsubscribed in time`),
      });
    } catch (error) {
      // The server forgets a connection's subscriptions with the connection.
      if (!(error instanceof ConnectionLost)) throw error;
    }
  }

  async #within(promise, late, timeout, signal) {
    signal?.throwIfAborted();
    checkTimeout(timeout);
    const ended = deferred();
    const timer = this.#clock.setTimeout(() => ended.reject(new Expired(late)), timeout);
    const aborted = () => ended.reject(signal.reason);
    signal?.addEventListener("abort", aborted);
    try {
      return await Promise.race([promise, ended.promise]);
    } finally {
      this.#clock.clearTimeout(timer);
      signal?.removeEventListener("abort", aborted);
    }
  }
}

/** Makes a client and resolves with it once its connection is open; else closes it and rejects. */
export async function connect(url, options = {}) {
  const client = new Peloton(url, options);
  try {
    await client.opened({ timeout: options.connectTimeout, signal: options.signal });
  } catch (error) {
    client.close();
    throw error;
  }
  return client;
}

function absolute(url) {
  const base = globalThis.location?.href;
  const resolved = base === undefined ? new URL(url) : new URL(url, base);
  resolved.protocol = resolved.protocol.replace(/^http/, "ws");
  resolved.hash = "";
  return resolved.href;
}

function defined(options) {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

function checkName(what, value) {
  if (typeof value !== "string" || value === "") {
    throw new TypeError(`${what} must be a string, and not empty`);
  }
}

function checkTimeout(ms) {
  if (!(ms > 0 && ms <= LONGEST_MS)) {
    throw new RangeError(`a timeout is a number of milliseconds up to ${LONGEST_MS}`);
  }
}

/** An integer below 2**53, and never below the 1 ms under which a server takes its own default. */
function nanoseconds(ms) {
  return Math.round(Math.max(ms, 1) * NS_PER_MS);
}

function encode(value) {
  const json = JSON.stringify(value === undefined ? null : value);
  if (json === undefined) throw new TypeError("this value has no JSON");
  // Half a surrogate pair has no UTF-8; a server closes the connection over it.
  if (json.includes("\\ud") && /(?<!\\)(?:\\\\)*\\ud[89a-f]/.test(json)) {
    throw new TypeError("a string holds half a surrogate pair");
  }
  return json;
}

function message(type, uuid, payload) {
  return `{"meta":{"type":${type},"uuid":"${uuid}"},${payload}}`;
}

function subscriptionPayload(channel, pattern) {
  return `"payload":{"channel":${encode(channel)},"pattern":${pattern}}`;
}

function keyOf(channel, pattern) {
  return (pattern ? "pattern:" : "channel:") + channel;
}

function newUuid() {
  // randomUUID exists only in secure contexts: https and loopback.
  return crypto.randomUUID?.() ?? uuidFrom(crypto.getRandomValues(new Uint8Array(16)));
}

/** A version 4 uuid (RFC 9562, 5.4) of 16 random bytes. */
export function uuidFrom(bytes) {
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

function deferred() {
  let resolve, reject;
  const promise = new Promise((...functions) => ([resolve, reject] = functions));
  return { promise, resolve, reject };
}

function report(error) {
  if (typeof globalThis.reportError === "function") globalThis.reportError(error);
  else queueMicrotask(() => { throw error; });
}

function ignore() {}
