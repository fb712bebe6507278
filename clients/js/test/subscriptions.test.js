import assert from "node:assert/strict";
import { test } from "node:test";

import { Expired, Refused } from "../peloton.js";
import { settle, setupOpen } from "./fakes.js";

/** A listener that keeps what it gets. */
function recorder() {
  const events = [];
  return { events, listener: (args, about) => events.push([args, about]) };
}

async function subscribed(world, channel, listener, options) {
  const subscribing = world.client.subscribe(channel, listener, options);
  world.socket.ack();
  return subscribing;
}

test("an event reaches its listener with channel, pattern and the publication's id", async () => {
  const world = setupOpen();
  const { events, listener } = recorder();
  await subscribed(world, "news", listener);
  world.socket.evnt("news", { n: 1 });
  world.socket.evnt("other", { n: 2 });
  const about = { channel: "news", pattern: null, for: "11111111-1111-4111-8111-111111111111" };
  assert.deepEqual(events, [[{ n: 1 }, about]]);
});

test("a plain subscription and a matching pattern get one event each", async () => {
  const world = setupOpen();
  const [plain, glob] = [recorder(), recorder()];
  await subscribed(world, "news.a", plain.listener);
  await subscribed(world, "news.*", glob.listener, { pattern: true });
  world.socket.evnt("news.a", 1);
  world.socket.evnt("news.a", 1, "news.*");
  assert.deepEqual(plain.events.map(([, about]) => about.pattern), [null]);
  assert.deepEqual(glob.events.map(([, about]) => about.pattern), ["news.*"]);
  assert.equal(glob.events[0][1].channel, "news.a");
});

test("a channel and a pattern of the same spelling are two subscriptions", async () => {
  const world = setupOpen();
  const [plain, glob] = [recorder(), recorder()];
  await subscribed(world, "a*", plain.listener);
  await subscribed(world, "a*", glob.listener, { pattern: true });
  assert.deepEqual(world.socket.sent.map(({ payload }) => payload.pattern), [false, true]);
  world.socket.evnt("a*", 1);
  assert.equal(plain.events.length, 1);
  assert.equal(glob.events.length, 0);
});

test("listeners of one channel share one SUB, and the last one to leave sends UNSB", async () => {
  const world = setupOpen();
  const { client, socket } = world;
  const [one, two] = [recorder(), recorder()];
  const first = client.subscribe("a", one.listener);
  const second = client.subscribe("a", two.listener);
  assert.equal(socket.frames.length, 1);
  socket.ack();
  const [subscription, other] = await Promise.all([first, second]);
  socket.evnt("a", 1);
  await subscription.unsubscribe();
  assert.equal(socket.frames.length, 1);
  socket.evnt("a", 2);
  const leaving = other.unsubscribe();
  assert.equal(socket.lastSent.meta.type, 4);
  socket.evnt("a", 3);
  socket.ack();
  await leaving;
  assert.deepEqual(one.events.map(([args]) => args), [1]);
  assert.deepEqual(two.events.map(([args]) => args), [1, 2]);
});

test("one function may listen twice, and leaves once a subscription", async () => {
  const world = setupOpen();
  const { events, listener } = recorder();
  const first = await subscribed(world, "a", listener);
  await world.client.subscribe("a", listener);
  world.socket.evnt("a", 1);
  assert.equal(events.length, 2);
  await first.unsubscribe();
  await first.unsubscribe();
  world.socket.evnt("a", 2);
  assert.equal(events.length, 3);
});

test("subscribing again right after leaving sends UNSB, then SUB", async () => {
  const world = setupOpen();
  const { client, socket } = world;
  const { events, listener } = recorder();
  const subscription = await subscribed(world, "a", listener);
  subscription.unsubscribe();
  client.subscribe("a", listener);
  assert.deepEqual(socket.sent.map(({ meta }) => meta.type), [3, 4, 3]);
  socket.ack(socket.sent[1]);
  socket.ack(socket.sent[2]);
  await settle();
  socket.evnt("a", 1);
  assert.equal(events.length, 1);
});

test("a refused subscription is forgotten, for all who waited for it", async () => {
  const { client, socket } = setupOpen();
  const waiting = [client.subscribe("a", () => {}), client.subscribe("a", () => {})];
  socket.nack(500, "broker unavailable");
  for (const subscribing of waiting) await assert.rejects(subscribing, Refused);
  client.subscribe("a", () => {});
  assert.equal(socket.frames.length, 2);
});

test("a subscription without an ACK in time is taken back", async () => {
  const { client, clock, socket } = setupOpen();
  const rejected = assert.rejects(client.subscribe("a", () => {}, { timeout: 100 }), Expired);
  await clock.advance(100);
  await rejected;
  assert.deepEqual(socket.sent.map(({ meta }) => meta.type), [3, 4]);
});

test("an aborted subscription is taken back", async () => {
  const { client, socket } = setupOpen();
  const controller = new AbortController();
  const subscribing = client.subscribe("a", () => {}, { signal: controller.signal });
  controller.abort();
  await assert.rejects(subscribing, { name: "AbortError" });
  assert.equal(socket.lastSent.meta.type, 4);
});

test("unsubscribing that is refused rejects, and the listener is gone all the same", async () => {
  const world = setupOpen();
  const { events, listener } = recorder();
  const subscription = await subscribed(world, "a", listener);
  const leaving = subscription.unsubscribe();
  world.socket.nack(500, "broker unavailable");
  await assert.rejects(leaving, Refused);
  world.socket.evnt("a", 1);
  assert.equal(events.length, 0);
});

test("a listener that throws keeps nothing from the others", async (t) => {
  const reported = [];
  const before = globalThis.reportError;
  globalThis.reportError = (error) => reported.push(error.message);
  t.after(() => (globalThis.reportError = before));
  const world = setupOpen();
  const { events, listener } = recorder();
  await subscribed(world, "a", () => {
    throw new Error("mine");
  });
  await world.client.subscribe("a", listener);
  world.socket.evnt("a", 1);
  assert.deepEqual(reported, ["mine"]);
  assert.equal(events.length, 1);
  assert.equal(world.client.state, "open");
});

test("an event without args gives null", async () => {
  const world = setupOpen();
  const { events, listener } = recorder();
  await subscribed(world, "a", listener);
  world.socket.evnt("a");
  assert.equal(events[0][0], null);
});
