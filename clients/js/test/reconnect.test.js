import assert from "node:assert/strict";
import { test } from "node:test";

import { CallExpired, ConnectionLost, Expired, QueueFull } from "../peloton.js";
import { settle, setup, setupOpen } from "./fakes.js";

const names = { 1: "CALL", 2: "PUB", 3: "SUB", 4: "UNSB" };

function sentTypes(socket) {
  return socket.sent.map(({ meta }) => names[meta.type]);
}

/** Every state event's detail, as it comes. */
function watched(client) {
  const details = [];
  client.addEventListener("state", ({ detail }) => details.push(detail));
  return details;
}

async function subscribed(world, channel, listener, options) {
  const subscribing = world.client.subscribe(channel, listener, options);
  world.socket.ack();
  return subscribing;
}

test("states go connecting, open, reconnecting, open, closed, each with an event", async () => {
  const world = setup();
  const details = watched(world.client);
  assert.equal(world.client.state, "connecting");
  world.socket.open();
  world.socket.lose(1001, "going away");
  await world.clock.advance(250);
  world.socket.open();
  world.client.close();
  assert.deepEqual(details.map(({ state }) => state), ["open", "reconnecting", "open", "closed"]);
  assert.deepEqual(details[1], {
    state: "reconnecting",
    previous: "open",
    code: 1001,
    reason: "going away",
    delay: 250,
    attempt: 1,
  });
});

test("delays are random below a bound that doubles up to its maximum", async () => {
  const world = setup({ backoff: { min: 100, max: 1000 }, random: () => 0.999 });
  const details = watched(world.client);
  for (let attempt = 0; attempt < 6; attempt++) {
    world.socket.lose();
    await world.clock.advance(1000);
  }
  assert.deepEqual(details.map(({ delay }) => Math.round(delay)), [100, 200, 400, 799, 999, 999]);
});

test("the jitter is full: it may be nothing at all", async () => {
  const draws = [0, 0.25, 0.75];
  const world = setup({ backoff: { min: 100 }, random: () => draws.shift() });
  const details = watched(world.client);
  for (let attempt = 0; attempt < 3; attempt++) {
    world.socket.lose();
    await world.clock.advance(1000);
  }
  assert.deepEqual(details.map(({ delay }) => delay), [0, 50, 300]);
});

test("only a connection that lived a while makes delays small again", async () => {
  const world = setup({ backoff: { min: 100, stable: 5000 }, random: () => 1 });
  const details = watched(world.client);
  const lives = [100, 100, 5000];
  for (const life of lives) {
    world.socket.open();
    await world.clock.advance(life);
    world.socket.lose();
    await world.clock.advance(1000);
  }
  const lost = details.filter(({ state }) => state === "reconnecting");
  assert.deepEqual(lost.map(({ delay }) => delay), [100, 200, 100]);
});

test("a call under way at the loss rejects with ConnectionLost: it may have run", async () => {
  const { client, socket } = setupOpen();
  const calling = client.call("a");
  socket.ack();
  socket.lose(1006, "");
  await assert.rejects(calling, (error) => {
    assert(error instanceof ConnectionLost);
    assert.equal(error.sent, true);
    assert.equal(error.code, 1006);
    return true;
  });
});

test("a call is never sent twice", async () => {
  const world = setupOpen();
  world.client.call("a").catch(() => {});
  world.socket.lose();
  await world.clock.advance(500);
  world.socket.open();
  assert.deepEqual(sentTypes(world.socket), []);
});

test("a call made while reconnecting is sent once open, with the time that is left", async () => {
  const world = setupOpen();
  world.socket.lose();
  const calling = world.client.call("a", 1, { timeout: 1000 });
  await world.clock.advance(400);
  world.socket.open();
  assert.equal(world.socket.lastSent.payload.timeout, 600e6);
  world.socket.res("done");
  assert.equal(await calling, "done");
});

test("a waiting call survives failed attempts and expires on its own time", async () => {
  const world = setup();
  const rejected = assert.rejects(world.client.call("a", 1, { timeout: 1000 }), CallExpired);
  world.socket.lose();
  await world.clock.advance(300);
  world.socket.lose();
  await world.clock.advance(700);
  await rejected;
  world.socket.open();
  assert.deepEqual(sentTypes(world.socket), []);
});

test("waiting requests are bounded, and go out in order", async () => {
  const { client, socket } = setup({ waitingLimit: 3 });
  for (const uri of ["a", "b", "c"]) client.call(uri);
  await assert.rejects(client.call("d"), QueueFull);
  socket.open();
  assert.deepEqual(socket.sent.map(({ payload }) => payload.uri), ["a", "b", "c"]);
});

test("waiting requests that ended make room for others", async () => {
  const { client, clock, socket } = setup({ waitingLimit: 1 });
  const rejected = assert.rejects(client.publish("a", 1, { timeout: 10 }), Expired);
  await clock.advance(10);
  await rejected;
  client.publish("b", 2);
  socket.open();
  assert.deepEqual(socket.sent.map(({ payload }) => payload.channel), ["b"]);
});

test("a new connection subscribes to everything again, before any waiting request", async () => {
  const world = setupOpen();
  const events = [];
  await subscribed(world, "a", (args) => events.push(args));
  await subscribed(world, "b.*", (args) => events.push(args), { pattern: true });
  const again = [];
  world.client.addEventListener("resubscribed", ({ detail }) => again.push(detail));
  world.socket.lose();
  world.client.publish("a", 1);
  await world.clock.advance(500);
  world.socket.open();
  assert.deepEqual(sentTypes(world.socket), ["SUB", "SUB", "PUB"]);
  for (const request of world.socket.sent) world.socket.ack(request);
  await settle();
  assert.deepEqual(again, [
    { channel: "a", pattern: false },
    { channel: "b.*", pattern: true },
  ]);
  world.socket.evnt("a", 1);
  world.socket.evnt("b.c", 2, "b.*");
  assert.deepEqual(events, [1, 2]);
});

test("subscribing while offline is done by the next connection", async () => {
  const { client, socket } = setup();
  const subscribing = client.subscribe("a", () => {});
  socket.open();
  assert.deepEqual(sentTypes(socket), ["SUB"]);
  socket.ack();
  await subscribing;
});

test("subscribing goes on over a loss before its ACK", async () => {
  const world = setupOpen();
  const subscribing = world.client.subscribe("a", () => {});
  world.socket.lose();
  await world.clock.advance(500);
  world.socket.open();
  world.socket.ack();
  await subscribing;
});

test("what was unsubscribed while offline stays so", async () => {
  const world = setupOpen();
  const subscription = await subscribed(world, "a", () => {});
  world.socket.lose();
  await subscription.unsubscribe();
  await world.clock.advance(500);
  world.socket.open();
  assert.deepEqual(sentTypes(world.socket), []);
});

test("a resubscription that meets a broken broker is tried again until it works", async () => {
  const world = setupOpen();
  const events = [];
  await subscribed(world, "a", (args) => events.push(args));
  world.socket.lose();
  await world.clock.advance(500);
  world.socket.open();
  world.socket.nack(500, "broker unavailable");
  await world.clock.advance(250);
  world.socket.nack(503, "broker unavailable");
  await world.clock.advance(500);
  assert.deepEqual(sentTypes(world.socket), ["SUB", "SUB", "SUB"]);
  world.socket.ack();
  await settle();
  world.socket.evnt("a", 1);
  assert.deepEqual(events, [1]);
  assert.equal(world.clock.timers, 0);
});

test("a resubscription that comes too fast for the server is tried again", async () => {
  const world = setupOpen();
  await subscribed(world, "a", () => {});
  world.socket.lose();
  await world.clock.advance(500);
  world.socket.open();
  world.socket.nack(429, "too many messages");
  await world.clock.advance(250);
  assert.deepEqual(sentTypes(world.socket), ["SUB", "SUB"]);
});

test("what has waited goes out in portions, what comes later behind it", async () => {
  const world = setup();
  for (let n = 0; n < 30; n++) world.client.subscribe(`c${n}`, () => {});
  for (let n = 0; n < 90; n++) world.client.call("a", n, { timeout: 5000 });
  world.socket.open();
  world.client.call("a", 90, { timeout: 5000 });
  assert.equal(world.socket.frames.length, 50);
  assert.equal(sentTypes(world.socket).lastIndexOf("SUB"), 29);
  await world.clock.advance(1000);
  assert.equal(world.socket.frames.length, 100);
  assert.equal(world.socket.lastSent.payload.timeout, 4e9);
  await world.clock.advance(1000);
  assert.equal(world.socket.frames.length, 121);
  const calls = world.socket.sent.filter(({ meta }) => meta.type === 1);
  assert.deepEqual(calls.map(({ payload }) => payload.args), [...Array(91).keys()]);
  world.client.call("a", 91);
  assert.equal(world.socket.lastSent.payload.args, 91);
});

test("a loss between two portions keeps the rest for the next connection", async () => {
  const world = setup();
  for (let n = 0; n < 60; n++) world.client.call("a", n, { timeout: 5000 }).catch(() => {});
  world.socket.open();
  world.socket.lose();
  await world.clock.advance(2000);
  world.socket.open();
  assert.deepEqual(world.socket.sent.map(({ payload }) => payload.args), [...Array(10).keys()].map((n) => n + 50));
});

test("a request made by a listener of the state goes out behind the subscriptions", async () => {
  const world = setupOpen();
  await subscribed(world, "a", () => {});
  world.client.addEventListener("state", ({ detail }) => {
    if (detail.state === "open") world.client.publish("a", 1);
  });
  world.socket.lose();
  await world.clock.advance(500);
  world.socket.open();
  assert.deepEqual(sentTypes(world.socket), ["SUB", "PUB"]);
});

test("a listener of the state may close the client", () => {
  const world = setup();
  world.client.addEventListener("state", () => world.client.close());
  world.socket.open();
  assert.equal(world.client.state, "closed");
  assert.equal(world.clock.timers, 0);
});

test("a resubscription that is not allowed any more ends with a refused event", async () => {
  const world = setupOpen();
  await subscribed(world, "a", () => {});
  const refused = [];
  world.client.addEventListener("refused", ({ detail }) => refused.push(detail));
  world.socket.lose();
  await world.clock.advance(500);
  world.socket.open();
  world.socket.nack(403, "not allowed");
  await settle();
  assert.equal(refused.length, 1);
  assert.equal(refused[0].channel, "a");
  assert.equal(refused[0].error.code, 403);
  assert.equal(world.clock.timers, 0);
});

test("an attempt that never opens is given up and repeated", async () => {
  const world = setup({ connectTimeout: 2000 });
  const first = world.socket;
  await world.clock.advance(2000);
  assert.equal(world.client.state, "reconnecting");
  assert.notEqual(first.closed, null);
  await world.clock.advance(500);
  assert.notEqual(world.socket, first);
  first.open();
  assert.equal(world.client.state, "reconnecting");
});

test("silence makes a heartbeat; no answer to it costs the connection", async () => {
  const world = setupOpen({ heartbeat: 1000 });
  const first = world.socket;
  await world.clock.advance(1000);
  assert.deepEqual(sentTypes(first), ["UNSB"]);
  first.ack();
  await world.clock.advance(1000);
  assert.deepEqual(sentTypes(first), ["UNSB", "UNSB"]);
  await world.clock.advance(1000);
  assert.equal(world.client.state, "reconnecting");
  assert.equal(first.closed.code, 4000);
});

test("traffic makes heartbeats needless", async () => {
  const world = setupOpen({ heartbeat: 1000 });
  for (let second = 0; second < 5; second++) {
    await world.clock.advance(900);
    world.socket.evnt("a", 1);
  }
  assert.deepEqual(sentTypes(world.socket), []);
});

test("a network that comes back is used at once", async (t) => {
  const network = new EventTarget();
  for (const name of ["addEventListener", "removeEventListener"]) {
    globalThis[name] = network[name].bind(network);
    t.after(() => delete globalThis[name]);
  }
  const world = setupOpen();
  world.socket.lose();
  network.dispatchEvent(new Event("online"));
  assert.equal(world.WebSocket.made.length, 2);
  world.socket.open();
  network.dispatchEvent(new Event("online"));
  assert.equal(world.WebSocket.made.length, 2);
  assert.equal(world.clock.timers, 0);
  world.client.close();
});

test("opened waits for the connection, however many attempts it takes", async () => {
  const world = setup();
  const opening = world.client.opened({ timeout: 5000 });
  world.socket.lose();
  await world.clock.advance(500);
  world.socket.open();
  await opening;
  assert.equal(world.clock.timers, 0);
});
