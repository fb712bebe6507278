/** Anything that JSON can hold; `undefined` is sent as `null`. */
export type Json =
  | null
  | boolean
  | number
  | string
  | readonly Json[]
  | { readonly [key: string]: Json | undefined };

/**
 * - `connecting`: the first connection is being made.
 * - `open`: requests go out at once.
 * - `reconnecting`: the connection is gone, or the first attempt failed; another attempt follows.
 * - `closed`: `close()` was called; there is no way back.
 */
export type State = "connecting" | "open" | "reconnecting" | "closed";

/** The names of the message types by number: `NAMES[1] === "CALL"`. */
export const NAMES: Readonly<Record<number, string>>;

/** The channel that `ping()` unsubscribes from; never subscribe to it. */
export const PING_CHANNEL: string;

/** The root of every error that this module makes on purpose. */
export class PelotonError extends Error {}

/** The function ran and answered with an error: `{"error": {"message": ...}}`. */
export class CallError extends PelotonError {
  readonly uri: string;
  /** The decoded `error` object, with whatever the function put beside `message`. */
  readonly payload: { readonly message: string; readonly [key: string]: unknown };
}

/** A request got no answer in its time. */
export class Expired extends PelotonError {}

/** A call got no result in its time. The function may have run, or be running, all the same. */
export class CallExpired extends Expired {
  readonly uri: string;
}

/** The server did not take the request (NACK). */
export class Refused extends PelotonError {
  /** As in HTTP: 403 not allowed, 429 too many, 500 the server or its broker. */
  readonly code: number;
  /** The server's text. */
  readonly reason: string;
}

/** The connection went away, or the client was closed, before the answer came. */
export class ConnectionLost extends PelotonError {
  /** The WebSocket close code. */
  readonly code: number;
  readonly reason: string;
  /**
   * Whether the request had been sent. If it had, it may have taken effect: a call may have run, an
   * event may have been published. Repeat it by yourself only if that does no harm.
   */
  readonly sent: boolean;
}

/** One of the client's bounds (`waitingLimit`, `pendingLimit`, `bufferLimit`); nothing was sent. */
export class QueueFull extends PelotonError {}

export interface Backoff {
  /** The bound of the first delay, in milliseconds; 500. */
  min?: number;
  /** The bound that later delays grow to, in milliseconds; 20 000. */
  max?: number;
  /** What the bound grows by at each attempt; 2. */
  factor?: number;
  /** After a connection of this many milliseconds the bound starts at `min` again; 5000. */
  stable?: number;
}

/** What the client needs to know of a WebSocket class: the browser's, Node's, that of `ws`... */
export interface WebSocketLike {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  readonly bufferedAmount: number;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

/** Where time comes from; for tests. */
export interface Clock {
  /** Milliseconds that never go back. */
  now(): number;
  setTimeout(callback: () => void, ms: number): unknown;
  clearTimeout(timer: any): void;
}

export interface Options {
  /** Milliseconds for requests that give no timeout of their own; 10 000. */
  timeout?: number;
  /** Milliseconds after which an attempt to connect is given up; 10 000. */
  connectTimeout?: number;
  /**
   * After this many milliseconds of silence the client pings, and gives the connection up when
   * nothing comes for as long again; 25 000. 0 switches this off.
   */
  heartbeat?: number;
  /** Delays between attempts to reconnect: each one is random between 0 and its bound. */
  backoff?: Backoff;
  /**
   * Most requests that wait for the connection, 1000; one more rejects with QueueFull. They go out
   * in portions of 50 a second, so that no server's limits are passed.
   */
  waitingLimit?: number;
  /** Most requests that wait for their answers, 10 000; one more rejects with QueueFull. */
  pendingLimit?: number;
  /** Most bytes that wait in the socket, 16 MiB; past it requests reject with QueueFull. */
  bufferLimit?: number;
  /** The class to connect with; the global one if there is one. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike;
  /**
   * Sees each message: `out` sent, `in` received, `own` made here (EXP, when a call's time is over).
   * The text is one JSON value, perhaps with a newline behind it.
   */
  trace?: (direction: "out" | "in" | "own", text: string) => void;
  /** For tests; the system's. */
  clock?: Clock;
  /** A number from 0 up to 1; for tests; `Math.random`. */
  random?: () => number;
}

export interface RequestOptions {
  /**
   * Milliseconds, up to 2**31 - 1, from now until the answer; time spent waiting for the connection
   * counts. The client's `timeout` unless given.
   */
  timeout?: number;
  /** Aborting rejects with the signal's reason. What was sent already cannot be taken back. */
  signal?: AbortSignal;
}

export interface SubscribeOptions extends RequestOptions {
  /** The channel is a Redis glob: `news.*`, `user.?`, `[ab]*`. */
  pattern?: boolean;
}

/** What came with an event. */
export interface About {
  /** The channel that it was published on. */
  channel: string;
  /** The pattern that matched, or null for a plain subscription. */
  pattern: string | null;
  /** The uuid of the message that published it. */
  for: string;
}

export type Listener<T = any> = (args: T, about: About) => void;

export interface Subscription {
  readonly channel: string;
  readonly pattern: boolean;
  /**
   * Ends it: the listener gets no more events, whatever comes of the promise. It resolves when the
   * server has acknowledged, or at once while others listen to the same channel or there is no
   * connection; rejects with Refused or Expired. Doing it twice does no harm.
   */
  unsubscribe(): Promise<void>;
}

export interface StateDetail {
  state: State;
  previous: State;
  /** For `reconnecting` and `closed`: the WebSocket close code and its reason. */
  code?: number;
  reason?: string;
  /** For `reconnecting`: milliseconds until the next attempt, and its number, from 1. */
  delay?: number;
  attempt?: number;
}

export interface SubscriptionDetail {
  channel: string;
  pattern: boolean;
}

/** What listeners get: an Event with a `detail`. */
export interface DetailEvent<T> extends Event {
  readonly detail: T;
}

export interface Events {
  /** The state changed. */
  state: DetailEvent<StateDetail>;
  /** After a reconnection the server sends a channel's events again; those in between are missed. */
  resubscribed: DetailEvent<SubscriptionDetail>;
  /**
   * After a reconnection the server refused a channel for good: the subscription is over. With 429
   * and from 500 on it is tried again.
   */
  refused: DetailEvent<SubscriptionDetail & { error: Refused }>;
}

/**
 * A connection that mends itself.
 *
 * It begins to connect when it is made. After a loss it tries again, for ever, with delays that grow
 * and are drawn at random, and subscribes again to everything. Requests made meanwhile wait for the
 * connection within their timeouts; requests that were under way reject with ConnectionLost.
 */
export class Peloton extends EventTarget {
  /**
   * @param url `ws:` or `wss:`, or in a browser anything relative to the page; `/ws` unless given.
   * @throws {TypeError} when there is no WebSocket class.
   * @throws {SyntaxError | TypeError} when the url cannot be used.
   */
  constructor(url?: string | URL, options?: Options);

  readonly state: State;
  readonly url: string;

  /** Resolves when the connection is open; rejects with Expired, or ConnectionLost once closed. */
  opened(options?: RequestOptions): Promise<void>;

  /**
   * Calls a function and resolves with its result.
   *
   * Rejects with CallError (the function failed), CallExpired (no result in time; the callee may not
   * have begun, and then never will), Refused (the call was not registered), ConnectionLost (see its
   * `sent`), QueueFull, TypeError (what JSON cannot hold), RangeError (the timeout).
   */
  call<T = any>(uri: string, args?: unknown, options?: RequestOptions): Promise<T>;

  /**
   * Sends an event to everybody who is subscribed to the channel, this client included.
   *
   * Resolves when the server has taken it; nobody need have received it. Rejects with Refused,
   * Expired, ConnectionLost, QueueFull, TypeError, RangeError.
   */
  publish(channel: string, args?: unknown, options?: RequestOptions): Promise<void>;

  /**
   * Has every event of a channel given to the listener, over all reconnections.
   *
   * Resolves when the server has acknowledged; an event may come just before. Listeners of one
   * channel share one subscription on the wire. A plain subscription and a pattern that matches are
   * two: each gets the event. Rejects as `publish` does, and then nothing stays subscribed.
   */
  subscribe<T = any>(
    channel: string,
    listener: Listener<T>,
    options?: SubscribeOptions,
  ): Promise<Subscription>;

  /** The time of one round trip to the server in milliseconds; rejects as `publish` does. */
  ping(options?: RequestOptions): Promise<number>;

  /** Ends the connection for good. What is pending rejects with ConnectionLost. */
  close(code?: number, reason?: string): void;

  addEventListener<K extends keyof Events>(
    type: K,
    listener: (event: Events[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/**
 * Makes a client and resolves with it once its connection is open.
 *
 * Within `connectTimeout` it tries as often as there is time for; then it closes the client and
 * rejects with Expired, or with the signal's reason.
 */
export function connect(
  url?: string | URL,
  options?: Options & { signal?: AbortSignal },
): Promise<Peloton>;

/** A version 4 uuid of 16 random bytes, which are changed. */
export function uuidFrom(bytes: Uint8Array): string;
