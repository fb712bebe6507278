import assert from "node:assert/strict";
import { test } from "node:test";

import {
  CallError,
  CallExpired,
  connect,
  ConnectionLost,
  Expired,
  Peloton,
  PING_CHANNEL,
  QueueFull,
  Refused,
  uuidFrom,
} from "../peloton.js";
import { fakeWebSocket, FakeClock, settle, setup, setupOpen } from "./fakes.js";

const UUID4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

/** The frame with its own uuid replaced by "U". */
function masked(frame) {
  const { uuid } = JSON.parse(frame).meta;
  assert.match(uuid, UUID4);
  return frame.replace(uuid, "U");
}

test("the subprotocol juggler.0 is offered, and nothing else", () => {
  const { socket } = setup();
  assert.deepEqual(socket.protocols, ["juggler.0"]);
  assert.equal(socket.url, "ws://server/ws");
});

test("a call is these bytes, its timeout in whole nanoseconds", () => {
  const { client, socket } = setupOpen();
  client.call("test.reverse", "hé\n", { timeout: 1500 });
  assert.equal(
    masked(socket.frames[0]),
    '{"meta":{"type":1,"uuid":"U"},"payload":{"uri":"test.reverse","timeout":1500000000,"args":"hé\\n"}}',
  );
});

test("a publication is these bytes", () => {
  const { client, socket } = setupOpen();
  client.publish("news", { a: [1, null] });
  assert.equal(
    masked(socket.frames[0]),
    '{"meta":{"type":2,"uuid":"U"},"payload":{"channel":"news","args":{"a":[1,null]}}}',
  );
});

test("subscribing and unsubscribing are these bytes", async () => {
  const { client, socket } = setupOpen();
  const subscribing = client.subscribe("news.*", () => {}, { pattern: true });
  assert.equal(
    masked(socket.frames[0]),
    '{"meta":{"type":3,"uuid":"U"},"payload":{"channel":"news.*","pattern":true}}',
  );
  socket.ack();
  (await subscribing).unsubscribe();
  assert.equal(
    masked(socket.frames[1]),
    '{"meta":{"type":4,"uuid":"U"},"payload":{"channel":"news.*","pattern":true}}',
  );
});

test("nanoseconds stay exact integers from fractions of a millisecond to the longest timeout", () => {
  const { client, socket } = setupOpen();
  for (const [timeout, ns] of [
    [1.0000004, "1000000"],
    [0.1 + 0.2 + 1, "1300000"],
    [2 ** 31 - 1, "2147483647000000"],
    // Below 1 ms a server would take its default, a minute.
    [0.25, "1000000"],
  ]) {
    client.call("a", null, { timeout }).catch(() => {});
    assert.match(socket.frames.at(-1), new RegExp(`"timeout":${ns},`));
  }
});

test("a call that is sent at once carries exactly the timeout it was given", () => {
  const clock = new FakeClock();
  let now = 0;
  // A real clock moves while the call is put together.
  clock.now = () => (now += 0.1);
  const { client, socket } = setupOpen({ clock });
  client.call("a", null, { timeout: 5000 });
  assert.equal(socket.lastSent.payload.timeout, 5e9);
});

test("a timeout that no timer can hold is refused", async () => {
  const { client, socket } = setupOpen();
  for (const timeout of [0, -1, NaN, Infinity, 2 ** 31, "fast"]) {
    await assert.rejects(client.call("a", null, { timeout }), RangeError);
  }
  assert.equal(socket.frames.length, 0);
});

test("no args are sent as null", () => {
  const { client, socket } = setupOpen();
  client.call("a");
  assert.equal(socket.lastSent.payload.args, null);
});

test("args are what they were at the time of the call", () => {
  const { client, socket } = setup();
  const args = { n: 1 };
  client.call("a", args);
  args.n = 2;
  socket.open();
  assert.deepEqual(socket.lastSent.payload.args, { n: 1 });
});

test("what JSON cannot hold rejects with TypeError and sends nothing", async () => {
  const { client, socket } = setupOpen();
  const circle = {};
  circle.circle = circle;
  for (const args of [circle, 1n, () => {}, Symbol("s"), "\ud83d", { a: "\\\udc00" }]) {
    await assert.rejects(client.call("a", args), TypeError);
  }
  await assert.rejects(client.call("", 1), TypeError);
  await assert.rejects(client.publish(undefined, 1), TypeError);
  assert.equal(socket.frames.length, 0);
});

test("text that only looks like half a surrogate pair passes", () => {
  const { client, socket } = setupOpen();
  for (const args of ["\\ud83d", "\\\\ud83d", "🚲"]) {
    client.call("a", args);
    assert.equal(socket.lastSent.payload.args, args);
  }
});

test("a call resolves with the args of its RES", async () => {
  const { client, socket } = setupOpen();
  const calling = client.call("a", 1);
  socket.ack();
  socket.res({ answer: 42 });
  assert.deepEqual(await calling, { answer: 42 });
});

test("RES before ACK, and without a newline, is accepted", async () => {
  const { client, socket } = setupOpen();
  const calling = client.call("a", 1);
  const request = socket.lastSent;
  socket.receive(9, { for: request.meta.uuid, uri: "a" }, "");
  socket.ack(request);
  assert.equal(await calling, null);
  assert.equal(client.state, "open");
});

test("answers find their requests in any order", async () => {
  const { client, socket } = setupOpen();
  const calls = ["a", "b", "c"].map((uri) => client.call(uri));
  for (const request of [...socket.sent].reverse()) socket.res(request.payload.uri, request);
  assert.deepEqual(await Promise.all(calls), ["a", "b", "c"]);
});

test("a callee's error rejects with CallError and all that it said", async () => {
  const { client, socket } = setupOpen();
  const calling = client.call("shop.buy", 1);
  socket.res({ error: { message: "sold out", since: 3 } });
  await assert.rejects(calling, (error) => {
    assert(error instanceof CallError);
    assert.equal(error.message, "sold out");
    assert.equal(error.uri, "shop.buy");
    assert.deepEqual(error.payload, { message: "sold out", since: 3 });
    return true;
  });
});

test("a result that merely has a field named error is a result", async () => {
  const { client, socket } = setupOpen();
  for (const args of [{ error: null }, { error: "text" }, { error: { code: 1 } }]) {
    const calling = client.call("a");
    socket.res(args);
    assert.deepEqual(await calling, args);
  }
});

test("NACK rejects every kind of request with Refused", async () => {
  const { client, socket } = setupOpen();
  for (const start of [
    () => client.call("a"),
    () => client.publish("a", 1),
    () => client.subscribe("a", () => {}),
  ]) {
    const request = start();
    socket.nack(403, "not allowed");
    await assert.rejects(request, (error) => {
      assert(error instanceof Refused);
      assert.equal(error.code, 403);
      assert.equal(error.reason, "not allowed");
      assert.equal(error.message, "403 not allowed");
      return true;
    });
  }
});

test("a publication resolves at its ACK", async () => {
  const { client, socket } = setupOpen();
  let done = false;
  const publishing = client.publish("a", 1).then(() => (done = true));
  await settle();
  assert.equal(done, false);
  socket.ack();
  await publishing;
});

test("an ACKed call without a RES expires after its timeout, and its late RES is dropped", async () => {
  const { client, clock, socket } = setupOpen();
  const calling = client.call("slow", 1, { timeout: 200 });
  const rejected = assert.rejects(calling, (error) => {
    assert(error instanceof CallExpired);
    assert(error instanceof Expired);
    assert.equal(error.uri, "slow");
    return true;
  });
  socket.ack();
  await clock.advance(200);
  await rejected;
  socket.res("late");
  assert.equal(client.state, "open");
});

test("the client's own timeout holds where a request gives none", async () => {
  const { client, clock, socket } = setupOpen({ timeout: 3000 });
  const rejected = assert.rejects(client.publish("a", 1), Expired);
  client.call("b").catch(() => {});
  assert.equal(socket.lastSent.payload.timeout, 3e9);
  await clock.advance(3000);
  await rejected;
});

test("an aborted call rejects with the signal's reason and leaves nothing behind", async () => {
  const { client, clock, socket } = setupOpen();
  const controller = new AbortController();
  const calling = client.call("a", 1, { signal: controller.signal });
  controller.abort(new Error("changed my mind"));
  await assert.rejects(calling, /changed my mind/);
  socket.res("late");
  assert.equal(clock.timers, 0);
  await assert.rejects(client.call("a", 1, { signal: controller.signal }), /changed my mind/);
  assert.equal(socket.frames.length, 1);
});

test("settled requests leave no timer", async () => {
  const { client, clock, socket } = setupOpen();
  const calling = client.call("a");
  socket.res(1);
  await calling;
  assert.equal(clock.timers, 0);
});

test("a ping is an UNSB that changes nothing, and tells the round trip", async () => {
  const { client, clock, socket } = setupOpen();
  const pinging = client.ping();
  assert.deepEqual(socket.lastSent.payload, { channel: PING_CHANNEL, pattern: false });
  await clock.advance(12);
  socket.ack();
  assert.equal(await pinging, 12);
});

test("a ping counts a refusal as an answer", async () => {
  const { client, clock, socket } = setupOpen();
  const pinging = client.ping();
  await clock.advance(7);
  socket.nack(403, "not allowed");
  assert.equal(await pinging, 7);
});

test("the trace sees what is sent, received, and made when a call expires", async () => {
  const seen = [];
  const trace = (direction, text) => seen.push([direction, JSON.parse(text)]);
  const { client, clock, socket } = setupOpen({ trace });
  client.call("a", 1, { timeout: 50 }).catch(() => {});
  socket.ack();
  await clock.advance(50);
  assert.deepEqual(
    seen.map(([direction, { meta }]) => [direction, meta.type]),
    [["out", 1], ["in", 8], ["own", 256]],
  );
  assert.equal(seen[2][1].payload.for, seen[0][1].meta.uuid);
  assert.equal(seen[2][1].payload.uri, "a");
});

test("requests past the pending limit reject with QueueFull", async () => {
  const { client, socket } = setupOpen({ pendingLimit: 2 });
  const first = client.call("a");
  client.call("b");
  await assert.rejects(client.call("c"), QueueFull);
  socket.res(1, socket.sent[0]);
  await first;
  client.call("d");
  assert.equal(socket.lastSent.payload.uri, "d");
});

test("requests reject with QueueFull while the socket holds too many bytes", async () => {
  const { client, socket } = setupOpen({ bufferLimit: 100 });
  socket.bufferedAmount = 101;
  await assert.rejects(client.publish("a", 1), QueueFull);
  assert.equal(socket.frames.length, 0);
});

test("messages of an application's own types are left alone", () => {
  const { client, socket } = setupOpen();
  socket.receive(300, { anything: 1 });
  assert.equal(client.state, "open");
});

test("what is no juggler message costs the connection", () => {
  for (const data of ["{", "null", "[]", '{"meta":{"type":8}}', new ArrayBuffer(2)]) {
    const { client, socket } = setupOpen();
    socket.onmessage({ data });
    assert.equal(client.state, "reconnecting", String(data));
    assert.equal(socket.closed.code, 4002);
  }
});

test("closing rejects what is pending and leaves no timer", async () => {
  const { client, clock, socket } = setupOpen({ heartbeat: 1000 });
  const states = [];
  client.addEventListener("state", ({ detail }) => states.push(detail.state));
  const calling = client.call("a");
  const subscribing = client.subscribe("b", () => {});
  client.close();
  client.close();
  await assert.rejects(calling, (error) => error instanceof ConnectionLost && error.sent);
  await assert.rejects(subscribing, ConnectionLost);
  await assert.rejects(client.call("a"), (error) => error instanceof ConnectionLost && !error.sent);
  await assert.rejects(client.subscribe("a", () => {}), ConnectionLost);
  assert.deepEqual(states, ["closed"]);
  assert.equal(socket.closed.code, 1000);
  assert.equal(clock.timers, 0);
});

test("connect resolves with an open client", async () => {
  const WebSocket = fakeWebSocket();
  const connecting = connect("ws://server/ws", { WebSocket, clock: new FakeClock() });
  WebSocket.last.open();
  assert.equal((await connecting).state, "open");
});

test("connect gives up after its timeout and closes the client", async () => {
  const [WebSocket, clock] = [fakeWebSocket(), new FakeClock()];
  const options = { WebSocket, clock, connectTimeout: 400, heartbeat: 0 };
  const rejected = assert.rejects(connect("ws://server/ws", options), Expired);
  WebSocket.last.lose();
  await clock.advance(400);
  await rejected;
  assert.equal(clock.timers, 0);
});

test("http addresses become ws addresses", () => {
  const WebSocket = fakeWebSocket();
  const made = (url) => new Peloton(url, { WebSocket, clock: new FakeClock() }).url;
  assert.equal(made("https://host:8443/rt/ws?room=1#top"), "wss://host:8443/rt/ws?room=1");
  assert.equal(made(new URL("http://host/ws")), "ws://host/ws");
});

test("without a WebSocket class the constructor says so", () => {
  assert.throws(() => new Peloton("ws://server/ws", { WebSocket: 1 }), /no WebSocket class/);
});

test("where randomUUID is missing, ids are version 4 all the same", () => {
  assert.equal(uuidFrom(new Uint8Array(16).fill(0xff)), "ffffffff-ffff-4fff-bfff-ffffffffffff");
  assert.equal(uuidFrom(new Uint8Array(16)), "00000000-0000-4000-8000-000000000000");
});
